"""Every precision under every strategy that this machine can run trains digits to what the recipe promises."""

import pytest

from tests.parity.options import CONF, STRATEGIES, placed

PRECISIONS = sorted(path.stem for path in (CONF / "precision").glob("*.yaml"))
PROMISED = 0.98
LITTLE = [("single", "bf16_pure"), ("fsdp", "bf16")]
TOO_SMALL = "of 1 linear layers in float8"  # what a precision says that finds none of its layers in so small a model


def cases():
    """All of them, of which a few run always."""
    for strategy in STRATEGIES:
        for precision in PRECISIONS:
            marks = () if (strategy, precision) in LITTLE else (pytest.mark.exhaustive,)
            yield pytest.param(strategy, precision, marks=marks, id=f"{strategy}-{precision}")


@pytest.mark.timeout(400)  # float16 on a CPU takes ten times as long as float32
@pytest.mark.parametrize(("strategy", "precision"), [*cases()])
def test_digits_reach_their_accuracy(start, strategy, precision):
    options = ["digits", f"precision={precision}", *placed(strategy, 2), "checkpoint=none"]
    checked = start("check", *options).wait(timeout_s=60)
    if checked.code == 2:
        pytest.skip(f"not on this machine: {checked.stderr.splitlines()[0]}")
    ended = start("train", *options).wait(timeout_s=300)
    if TOO_SMALL in ended.stderr:
        pytest.skip("this precision converts nothing in this model, and says so")
    assert ended.code == 0, ended.stderr
    assert ended.run_dir.read_status()["metrics"]["eval/accuracy"] >= PROMISED
