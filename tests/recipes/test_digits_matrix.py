"""Every precision under every strategy that this machine can run trains digits to what the recipe promises."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import Started
from tests.parity.options import CONF, STRATEGIES, placed

PRECISIONS = sorted(path.stem for path in (CONF / "precision").glob("*.yaml"))
PROMISED = 0.98
DENSE = ["model._target_=user_hooks.dense.build_model", "~model.width"]
PROMISED_OF_DENSE = 0.97  # which knows nothing of neighbouring pixels: 0.978 in float32
LITTLE = [("single", "bf16_pure"), ("single", "fp8")]
TOO_SMALL = (
    "of 1 linear layers in float8"  # what a precision says that finds none of its layers in a convolutional model
)


def cases() -> Iterator[Any]:
    """All of them, of which a few run always."""
    for strategy in STRATEGIES:
        for precision in PRECISIONS:
            marks = () if (strategy, precision) in LITTLE else (pytest.mark.exhaustive,)
            yield pytest.param(strategy, precision, marks=marks, id=f"{strategy}-{precision}")


@pytest.mark.timeout(400)  # float16 on a CPU takes ten times as long as float32
@pytest.mark.parametrize(("strategy", "precision"), [*cases()])
def test_digits_reach_their_accuracy(start: Callable[..., Started], strategy: Any, precision: Any) -> None:
    options = ["digits", f"precision={precision}", *placed(strategy, 2), "checkpoint=none"]
    checked = start("check", *options).wait(timeout_s=60)
    if checked.code == 2:
        pytest.skip(f"not on this machine: {checked.stderr.splitlines()[0]}")
    ended = start("train", *options).wait(timeout_s=300)
    promised = PROMISED
    if TOO_SMALL in ended.stderr:
        ended, promised = start("train", *options, *DENSE).wait(timeout_s=300), PROMISED_OF_DENSE
        assert "1 of 3 linear layers in float8" in ended.run_dir.rank_log(0).read_text()
    assert ended.code == 0, ended.stderr
    assert ended.run_dir.read_status()["metrics"]["eval/accuracy"] >= promised
