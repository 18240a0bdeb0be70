"""The judgement of the self-test: on numbers that a reader can check."""

from collections.abc import Callable
from typing import Any

import pytest

from runner.selftest.verdict import DiffersError, bitwise, close, falling

LOSSES = {1: 1.0, 2: 0.5}


def test_losses_that_agree_are_told_with_their_distance() -> None:
    assert close({1: 1.0, 2: 0.5 + 2**-22}, LOSSES, tolerance=1e-5) == "losses within 4.8e-07"
    assert close(LOSSES, LOSSES, tolerance=1e-5) == bitwise(LOSSES, LOSSES) == "losses equal bit by bit"
    falling(LOSSES)


@pytest.mark.parametrize(
    ("judge", "ours", "words"),
    [
        (
            lambda ours: close(ours, LOSSES, tolerance=1e-5),
            {1: 1.0, 2: 0.501},
            "step 2 is 0.501 instead of 0.5: 2.0e-03",
        ),
        (lambda ours: close(ours, LOSSES, tolerance=1e-5), {1: 1.0}, r"of steps \[1\] instead of \[1, 2\]"),
        (lambda ours: close(ours, LOSSES, tolerance=1e-5), {1: 1.0, 2: None}, "the loss of step 2 is not finite"),
        (lambda ours: close(ours, {}, tolerance=1e-5), {}, r"of steps \[\] instead of \[\]"),
        (lambda ours: bitwise(ours, LOSSES), {1: 1.0, 2: 0.5 + 2**-53}, "0.5000000000000001 instead of 0.5"),
        (lambda ours: bitwise(ours, {1: None}), {1: None}, "None instead of None"),
        (falling, {1: 1.0, 2: 1.0}, r"do not fall: \[1.0, 1.0\]"),
        (falling, {1: 1.0, 2: None, 3: 0.5}, "do not fall"),
        (falling, {1: 1.0}, "do not fall"),
    ],
)
def test_losses_that_differ_are_told_by_step_and_value(judge: Callable[[Any], Any], ours: Any, words: str) -> None:
    with pytest.raises(DiffersError, match=words):
        judge(ours)
