"""The BERT of docs/evaluation.md: one result under every strategy, in its metrics and in its predictions."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
import pytest
from pyarrow import parquet

from tests.conftest import Ended
from tests.docs.test_commands import CHECKOUT, FILE
from tests.parity.options import placed

pytestmark = pytest.mark.skipif(find_spec("transformers") is None, reason="pip install 'hydra-runner[transformers]'")


@pytest.fixture(autouse=True)
def files(project: Path) -> None:
    """What the page says, word for word."""
    for name, content in FILE.findall((CHECKOUT / "docs" / "evaluation.md").read_text()):
        if name in ("user_hooks/bert.py", "recipes/bert.yaml"):
            (project / name).write_text(content)


def trained(runner: Callable[..., Ended], strategy: str) -> dict[str, float]:
    """The metrics after twelve steps."""
    ended = runner("train", "bert", "run.steps=12", f"run.dir={strategy}", *placed(strategy, 2), timeout_s=180)
    return {name: value for name, value in ended.metrics()[-1].items() if name.startswith("eval/")}


@pytest.mark.parametrize(
    "strategy",
    [
        "ddp",
        *(pytest.param(one, marks=pytest.mark.exhaustive) for one in ("fsdp", "deepspeed_zero2", "deepspeed_zero3")),
    ],
)
def test_two_ranks_train_measure_and_predict_as_one_process(
    runner: Callable[..., Ended], strategy: Any, project: Path
) -> None:
    """One micro-batch of 32 pairs in each step, or two of 16 that are padded to other lengths."""
    from sklearn.metrics import accuracy_score, f1_score, log_loss  # 1.5 s of CPU, and memory that each fork copies

    alone, pair = trained(runner, "single"), trained(runner, strategy)
    assert {*pair} == {f"eval/{name}/{metric}" for name in ("short", "long") for metric in ("loss", "accuracy", "f1")}
    assert pair == pytest.approx(alone, abs=1e-4)  # twelve steps of AdamW; float32 sums in another order
    runner("predict", strategy, "--on", "long", "--out", "long.parquet", timeout_s=180)
    found = parquet.read_table(project / "long.parquet").to_pydict()
    target, preds = numpy.array(found["target"]), numpy.array(found["preds"])
    assert pair["eval/long/f1"] == pytest.approx(f1_score(target, preds > 0.5), abs=1e-6)
    assert pair["eval/long/accuracy"] == accuracy_score(target, preds > 0.5)
    assert pair["eval/long/loss"] == pytest.approx(log_loss(target, preds), abs=1e-5)
