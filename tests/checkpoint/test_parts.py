"""The options of the group: what they refuse, and what `none` still does."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from torch import Tensor

from runner.checkpoint.full import Full
from runner.checkpoint.none import NoCheckpoint
from runner.checkpoint.retention import Retention
from runner.checkpoint.sharded import Sharded
from runner.config.parts import build_part, build_section
from runner.config.run_spec import Eval
from runner.config.sections import key_names
from runner.protocols import Progress, State
from runner.storage.names import to_names
from runner.world.solo import SoloWorld
from tests.storage.states import latest, open_latest

CONF = Path(__file__).parents[2] / "conf" / "checkpoint"


def spec(*, evaluates: bool = True, stop_at_step: int | None = None) -> Any:
    """As much of a declaration as checkpoints look at."""
    evaluation = Eval(every_steps=10 if evaluates else None, at_end=False, micro_items=None)
    return SimpleNamespace(eval=evaluation, run=SimpleNamespace(stop_at_step=stop_at_step))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"every_steps": 0}, "every_steps=0 must be at least 1, or null for off."),
        ({"every_minutes": 0.0}, "every_minutes=0.0 must be above 0, or null for off."),
    ],
)
@pytest.mark.parametrize("part", [Sharded, Full])
def test_numbers_out_of_range_are_refused(part: type, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        part(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep_last": 0}, "keep_last=0 must be at least 1, or null to keep all."),
        ({"keep_best": -1}, "keep_best=-1 must be at least 0."),
    ],
)
def test_how_many_are_kept_has_a_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Retention(**fields)


@pytest.mark.parametrize("option", ["sharded", "full"])
def test_a_fault_of_retention_names_the_key_of_the_option(option: str) -> None:
    values = {**yaml.safe_load((CONF / f"{option}.yaml").read_text()), "keep_last": 0}
    assert [fault.key for fault in build_part(values, key="checkpoint").faults] == ["checkpoint.keep_last"]


def test_the_best_cannot_be_kept_without_evaluation() -> None:
    faults = list(Sharded(retention=Retention(keep_best=1)).check(spec(evaluates=False)))
    assert [(fault.key, fault.message) for fault in faults] == [
        ("checkpoint.keep_best", "keep_best=1 needs eval/loss, but this run never evaluates. Set eval.every_steps.")
    ]
    assert list(Sharded(retention=Retention(keep_best=1)).check(spec())) == []


def test_none_refuses_to_be_asked_for_checkpoints() -> None:
    node = {"_target_": "runner.checkpoint.none.NoCheckpoint", "every_steps": 5}
    faults = [*build_part(node, key="checkpoint").faults, *NoCheckpoint().check(spec(stop_at_step=3))]
    assert [(fault.key, fault.message) for fault in faults] == [
        ("checkpoint.every_steps", "NoCheckpoint has no such key. It has: none."),
        ("run.stop_at_step", "stop_at_step=3 ends with a commit. Drop it, or choose checkpoint=sharded."),
    ]
    assert list(NoCheckpoint().check(spec())) == []


def test_none_saves_nothing(tmp_path: Path, world: SoloWorld) -> None:
    checkpointer = NoCheckpoint().open(tmp_path, world)
    checkpointer.save(State(values={"a": 1}), progress=Progress(step=1, position=1), metrics={})
    checkpointer.poll(lambda: pytest.fail("it never asks for a state"))
    checkpointer.wait()
    assert latest(tmp_path, world) is None
    assert list(tmp_path.iterdir()) == []


def test_none_leaves_what_was_saved_before_to_be_continued_from(
    tmp_path: Path, save: Callable[..., Path], world: SoloWorld, blank: State[Tensor]
) -> None:
    path = save(3)
    NoCheckpoint().open(tmp_path, world)
    saved = open_latest(tmp_path, world)
    assert saved.path == path
    assert to_names(saved.stored).keys() == to_names(blank).keys()
    saved.read(blank)
    assert blank.values == {"step": 3}


@pytest.mark.parametrize(("option", "part"), [("sharded", Sharded()), ("full", Full()), ("none", NoCheckpoint())])
def test_an_option_file_says_the_defaults(option: str, part: Any) -> None:
    node = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    assert node.pop("_target_") == f"{type(part).__module__}.{type(part).__name__}"
    assert list(node) == key_names(type(part))
    assert build_section(type(part), node, key="checkpoint").value == part
