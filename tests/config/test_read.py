"""Every kind of fault is found, told with key, value, rule and way out, and hides no other."""

import dataclasses
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.config.read import GROUPS, read
from runner.errors import SpecError

RIVAL = {"_target_": "spec_parts.Rival"}


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.config.read.GROUPS", {**GROUPS, "optimizer": "spec_parts.Adapter"})


def test_a_right_configuration_becomes_typed(config: dict[str, Any], parts: Path) -> None:
    config["checkpoint"] = {"_target_": "spec_parts.Plain", "rate": "1e-3", "color": "blue", "pair": [0, 1]}
    spec = read(config, import_roots=[str(parts)])
    plain: Any = spec.checkpoint
    assert (plain.rate, plain.color.value, plain.pair) == (0.001, "blue", (0.0, 1.0))
    assert spec.batch.micro_items == 12
    assert spec.model is not None
    assert spec.model.target == "spec_parts.build_model"
    assert spec.model.arguments == {"width": 4}
    assert list(spec.tracker) == ["first"]


def test_names_types_and_ranges_are_told_at_once(faults: Callable[[dict[str, Any]], dict[str, str]]) -> None:
    found = faults(
        {
            "nmae": "x",
            "run.steps": 0,
            "batch.items": 63,
            "batch.micro_items": 8,
            "checkpoint.rate": "abc",
            "clip.norm": -1.0,
            "tracker.first.colour": "red",
        }
    )
    assert set(found) == {
        "nmae", "run.steps", "batch.items", "checkpoint.rate", "clip.norm", "tracker.first.colour",
    }  # fmt: skip


def test_hooks_and_rules_between_parts_are_told_at_once(faults: Callable[[dict[str, Any]], dict[str, str]]) -> None:
    found = faults({"model.widht": 1, "loss._target_": "spec_parts.loss_of_batch", "checkpoint.width": 9})
    assert set(found) == {"model.widht", "loss._target_", "checkpoint.width"}


def test_no_hook_is_imported_as_long_as_a_name_is_wrong(config: dict[str, Any], parts: Path) -> None:
    (parts / "spec_heavy.py").write_text("def build_model(): ...\n")
    config["model"] = {"_target_": "spec_heavy.build_model"}
    config["nmae"] = "x"
    with pytest.raises(SpecError, match="are checked once this is right") as wrong:
        read(config, import_roots=[str(parts)])
    assert "spec_heavy" not in sys.modules
    assert pickle.loads(pickle.dumps(wrong.value)).note == wrong.value.note
    del config["nmae"]
    read(config, import_roots=[str(parts)])
    assert "spec_heavy" in sys.modules


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"modle": {}}, "modle", "no such section. Did you mean model?"),
        ({"name": "a/b"}, "name", "'a/b': must be given: text without a slash"),
        ({"name": "???"}, "name", "must be given"),
        ({"run.stpes": 3}, "run.stpes", "Run has no such key. Did you mean steps? It has:"),
        ({"run": 3}, "run", "3 must be a mapping: run.<key>=<value>"),
        ({"run.steps": "???"}, "run.steps", "must be given"),
        ({"run.steps": 2.5}, "run.steps", "2.5 must be a whole number"),
        ({"run.seed": -1}, "run.seed", "-1 is too small: it must be at least 0"),
        ({"run.deterministic": "maybe"}, "run.deterministic", "'maybe' must be true or false"),
        ({"run.stop_at_step": 9}, "run.stop_at_step", "9 is beyond run.steps=8. Use at most 8"),
        ({"batch.micro_items": 0}, "batch.micro_items", "0 is too small: it must be at least 1"),
        ({"eval.every_steps": 0}, "eval.every_steps", "0 is too small"),
        ({"clip.value": 0.0}, "clip.value", "0.0 must be above 0. Use null"),
        ({"optimizer": None}, "optimizer", "is null, not an option. Choose one: optimizer=<option>"),
        ({"tracker": ["first"]}, "tracker", "must be a mapping of names to options"),
        ({"strategy._target_": "???"}, "strategy._target_", "must be given: the dotted path of a part"),
        ({"strategy._target_": "spec_parts.Cutt"}, "strategy._target_", "has no 'Cutt'. Did you mean Cut?"),
        ({"strategy._target_": "spec_nowhere.Cut"}, "strategy._target_", "there is no module 'spec_nowhere'"),
        ({"strategy._target_": "spec_parts.NUMBER"}, "strategy._target_", "is not a part: it must be a dataclass"),
        ({"checkpoint.color": "rde"}, "checkpoint.color", "'rde' must be red | blue. Did you mean red?"),
        ({"checkpoint.pair": [1]}, "checkpoint.pair", "must be a list of 2: a number, a number"),
        ({"checkpoint.names": "ab"}, "checkpoint.names", "'ab' must be a list of text"),
        ({"checkpoint.limit": "x"}, "checkpoint.limit", "'x' must be a number or null"),
        ({"checkpoint.rate": -1}, "checkpoint.rate", "rate=-1.0 must not be negative"),
        ({"checkpoint.width": 9}, "checkpoint.width", "9 is wider than run.steps=8"),
        ({"checkpoint": {"_target_": "spec_parts.Needs"}}, "checkpoint.must", "must be given"),
        ({"hardware.processes": 13}, "hardware.processes", "13 ranks cannot be arranged. Use 12 or 14."),
    ],
)  # fmt: skip
def test_a_fault_names_key_value_rule_and_way_out(
    faults: Callable[[dict[str, Any]], dict[str, str]], changes: Any, key: str, words: str
) -> None:
    found = faults(changes)
    assert list(found) == [key]
    assert words in found[key]


def test_what_cannot_be_built_does_not_hide_the_checks_of_other_parts(
    faults: Callable[[dict[str, Any]], dict[str, str]],
) -> None:
    assert set(faults({"strategy._target_": "no.such", "checkpoint.rate": "abc"})) == {
        "strategy._target_",
        "checkpoint.rate",
    }


def test_a_value_of_the_batch_that_is_no_number_is_one_fault(
    faults: Callable[[dict[str, Any]], dict[str, str]],
) -> None:
    assert set(faults({"batch.items": "x", "batch.micro_items": 5})) == {"batch.items"}


def test_a_number_out_of_range_hides_only_the_rules_that_need_it(
    faults: Callable[[dict[str, Any]], dict[str, str]],
) -> None:
    assert set(faults({"run.steps": 0, "clip.norm": 0.0, "checkpoint.width": 9})) == {"run.steps", "clip.norm"}


def test_a_foreign_class_goes_through_the_groups_adapter(config: dict[str, Any], parts: Path, adapter: Any) -> None:
    config["optimizer"] = {**RIVAL, "lr": 0.2, "no_decay": ["bias"]}
    optimizer: Any = read(config, import_roots=[str(parts)]).optimizer
    assert dataclasses.asdict(optimizer) == {
        "target": "spec_parts.Rival",
        "arguments": {"lr": 0.2},
        "no_decay": ["bias"],
    }


def test_what_a_foreign_class_does_not_take_is_a_fault_with_a_way_out(
    faults: Callable[[dict[str, Any]], dict[str, str]], adapter: Any
) -> None:
    found = faults({"optimizer": {**RIVAL, "betas": [0, 1], "momentun": 1, "params": 1}})
    assert "does not take 'betas'" in found["optimizer.betas"]
    assert "Delete it: ~optimizer.betas" in found["optimizer.betas"]
    assert "Did you mean momentum?" in found["optimizer.momentun"]
    assert "gets params from the runner" in found["optimizer.params"]


def test_every_fault_says_where_its_value_came_from(config: dict[str, Any], parts: Path) -> None:
    config["run"]["steps"] = 0
    with pytest.raises(SpecError, match="from a file of mine"):
        read(config, import_roots=[str(parts)], origin=lambda key: f"a file of mine, {key}")


def test_a_worker_reads_without_looking_at_hooks(config: dict[str, Any], tmp_path: Path) -> None:
    config["model"]["_target_"] = "spec_nowhere.build"
    found = read(config, import_roots=[str(tmp_path)], check=False).model
    assert found is not None
    assert found.target == "spec_nowhere.build"


@pytest.mark.parametrize("group", ["hardware", "launch", "strategy"])
def test_a_part_of_another_group_is_told(faults: Callable[..., dict[str, str]], group: str) -> None:
    asked = {"hardware": "processes", "launch": "nodes", "strategy": "axes"}[group]
    said = faults({group: {"_target_": "spec_parts.Told"}})
    assert said[group] == f"Told is no option of this group: it has no {asked}. Choose one: {group}=<option>"
