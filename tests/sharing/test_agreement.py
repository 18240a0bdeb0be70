"""Two runs are compared value by value; what differs is told by step, name and size."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from runner.config.damage import Damaged
from runner.config.run_dir import RunDir
from runner.sharing.agreement import Agreement, agreement
from runner.storage.tensors import Difference


def run(path: Path, *records: dict[str, Any]) -> RunDir:
    path.mkdir()
    run_dir = RunDir(path)
    run_dir.metrics.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return run_dir


FIRST = ({"step": 1, "time_s": 0.1, "train/loss": 0.5}, {"step": 2, "train/loss": 0.25}, {"step": 2, "eval/loss": 1.0})


def test_times_and_later_steps_do_not_count(tmp_path: Path) -> None:
    again = ({"step": 1, "time_s": 9.0, "train/loss": 0.5}, {"step": 2, "train/loss": 0.25, "eval/loss": 1.0})
    found = agreement(run(tmp_path / "a", *FIRST), run(tmp_path / "b", *again, {"step": 3, "train/loss": 7.0}))
    assert found.is_bitwise
    assert list(found.lines()) == [
        "metrics: 3 values up to step 2 are equal, bit for bit",
        "weights: not compared, since the runs have no checkpoint of the same step",
    ]


def test_the_first_step_that_differs_is_told_and_the_largest_difference(tmp_path: Path) -> None:
    other = (
        {"step": 1, "train/loss": 0.5},
        {"step": 2, "train/loss": math.nextafter(0.25, 1)},
        {"step": 2, "eval/loss": 1.5},
    )
    found = agreement(run(tmp_path / "a", *FIRST), run(tmp_path / "b", *other))
    assert next(found.lines()) == (
        "metrics: they differ from step 2 on (train/loss: 0.25 and 0.25000000000000006); at most by 0.5, in eval/loss "
        "of step 2"
    )


def test_a_value_that_is_missing_or_null_on_one_side_differs(tmp_path: Path) -> None:
    nan = {"step": 1, "train/loss": None}
    assert agreement(run(tmp_path / "a", nan), run(tmp_path / "b", nan)).is_bitwise
    assert not agreement(RunDir(tmp_path / "a"), run(tmp_path / "c", {"step": 1, "train/loss": 0.5})).is_bitwise
    missing = agreement(run(tmp_path / "d", *FIRST), run(tmp_path / "e", *FIRST[:2]))
    assert [(one.step, one.name) for one in missing.differing] == [(2, "eval/loss")]


def test_tensors_that_differ_are_told(tmp_path: Path) -> None:
    found = Agreement(
        num_values=1,
        last_step=1,
        differing=[],
        checkpoint="step_1",
        num_tensors=3,
        tensors=[Difference("a", 0.5), Difference("b", 2.0)],
    )
    assert not found.is_bitwise
    assert list(found.lines())[1] == "weights: 2 of 3 tensors of step_1 differ, at most by 2, in b"


@pytest.mark.parametrize("line", ["{", "[]", '{"step": "x"}', '{"loss": 1}', '{"step": 1, "loss": "much"}'])
def test_a_damaged_record_is_named(tmp_path: Path, line: str) -> None:
    before = run(tmp_path / "a", *FIRST)
    before.metrics.write_text(before.metrics.read_text() + line + "\n")
    with pytest.raises(Damaged, match=r"metrics\.jsonl is damaged: line 4 is not a record"):
        agreement(before, before)
