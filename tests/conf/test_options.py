"""Every option file says all that its dataclass can, in its order, and how to try it."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.config.imports import locate
from runner.config.parts import build_part
from runner.config.read import MANY_GROUPS
from runner.config.sections import entries, key_names

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = sorted(CONF.glob("*/*.yaml"))
PARAMETRIZE = pytest.mark.parametrize("option", OPTIONS, ids=lambda path: f"{path.parent.name}-{path.stem}")


def node(option: Path) -> dict[str, Any]:
    """What the file says."""
    loaded: dict[str, Any] = yaml.safe_load(option.read_text())
    return loaded


def part_of(option: Path) -> Any:
    """The dataclass that the file names."""
    return locate(node(option)["_target_"])


def test_every_group_of_the_skeleton_has_options() -> None:
    groups = {name for entry in yaml.safe_load((CONF / "base.yaml").read_text())["defaults"][:-1] for name in entry}
    assert groups == {option.parent.name for option in OPTIONS}


def test_no_option_needs_torch_to_be_typed() -> None:
    """A misspelt key is told before torch is imported, which takes seconds."""
    modules = sorted({node(option)["_target_"].rpartition(".")[0] for option in OPTIONS})
    modules += ["runner.optimizer.foreign", "runner.schedule.foreign"]
    libraries = "{'torch', 'torchao', 'transformer_engine', 'deepspeed', 'wandb', 'tensorboard'}"
    said = f"import sys, {', '.join(modules)}; print(sorted({libraries} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", said], cwd=CONF.parent, stdout=subprocess.PIPE, timeout=60, check=True)
    assert done.stdout == b"[]\n"


@PARAMETRIZE
def test_it_names_a_final_frozen_keyword_only_dataclass(option: Path) -> None:
    assert dataclasses.is_dataclass(part_of(option))
    part = part_of(option)
    assert part.__dataclass_params__.frozen
    assert part.__final__
    assert all(field.kw_only for field in dataclasses.fields(part))


@PARAMETRIZE
def test_it_lists_every_field_in_order_and_no_other(option: Path) -> None:
    values = {key: value for key, value in node(option).items() if key != "_target_"}
    assert next(iter(node(option))) == "_target_"
    assert_lists_every_field(values, part_of(option))


def assert_lists_every_field(values: dict[str, Any], cls: Any) -> None:
    """Those of nested sections, too, unless a section is null."""
    assert list(values) == key_names(cls)
    for entry in entries(cls):
        inner = None if entry.flattened is not None else values[entry.field.name]
        if entry.section is not None and inner is not None:
            assert_lists_every_field(inner, entry.section)


@PARAMETRIZE
def test_its_values_are_the_defaults(option: Path) -> None:
    """But for references to other keys, and where several options are of one dataclass: then the first has them."""
    values = {key: value for key, value in node(option).items() if not str(value).startswith("${")}
    built = build_part(values, key=option.parent.name)
    assert built.faults == []
    of_one = [other for other in OPTIONS if part_of(other) is part_of(option)]
    assert built.value == part_of(option)() or option != of_one[0]


@PARAMETRIZE
def test_its_header_says_what_it_needs_and_how_to_try_it(option: Path) -> None:
    header, _, _ = option.read_text().partition("\n_target_: ")
    lines = header.splitlines()
    if option.parent.name in MANY_GROUPS:
        assert lines.pop(0) == f"# @package {option.parent.name}.{option.stem}"
    assert len(lines) >= 3
    assert all(line.startswith("# ") for line in lines)
    tried = re.fullmatch(r"# Try it: runner (?:train|check) \S+ (.+)", lines[-1])
    assert tried is not None, lines[-1]
    assert option.parent.name in tried[1], "the command tries another group"


@PARAMETRIZE
def test_each_key_has_a_comment(option: Path) -> None:
    _, _, body = option.read_text().partition("\n_target_: ")
    for line in body.splitlines()[1:]:
        key, mark, comment = line.partition("  #")
        assert mark, f"{key} has no comment"
        assert len(comment.split()) >= 2


@PARAMETRIZE
def test_each_field_says_what_it_is(option: Path) -> None:
    assert_documents_every_field(part_of(option))


def assert_documents_every_field(cls: Any) -> None:
    """A line under each public field, and under those of the sections in it."""
    source = Path(locate(cls.__module__).__file__).read_text()
    for entry in entries(cls):
        name = entry.field.name
        assert re.search(rf'^    {name}: .*\n(?:[^\n]*\n)??    """', source, re.MULTILINE), f"{cls.__name__}.{name}"
        if entry.section is not None:
            assert_documents_every_field(entry.section)
