"""Every value knows the line that sets it and those that it replaced; every group, which entries chose its option."""

from pathlib import Path
from typing import Any

import pytest

from runner.composition.compose import compose
from runner.composition.find_recipe import find
from runner.composition.yaml_file import parse
from runner.errors import SpecError

PAGE = """\
# A header.
a: 1   # one
b:  # a section
  c: "x # y"  # quoted
  d: {e: 1, f: [1,
     2]}  # over two lines
  bare:   # nothing
text: |  # a block
  x # no comment
shared: &z {q: 1}   # shared
merged:
  <<: *z
  r: 2
h#ash: 3
"""


def place(setting: Any) -> Any:
    """A place in short: the file's name and line, or the override; and the value there."""
    return (setting.override or f"{setting.path.name}:{setting.line}", setting.value)


def origins(*overrides: str) -> Any:
    return compose(find("tiny"), overrides).origins


@pytest.mark.parametrize(
    ("keys", "line", "comment"),
    [
        (("a",), 2, "one"),
        (("b",), 3, "a section"),
        (("b", "c"), 4, "quoted"),
        (("b", "d"), 5, "over two lines"),
        (("b", "d", "e"), 5, ""),
        (("b", "d", "f", 1), 6, ""),
        (("b", "bare"), 7, "nothing"),
        (("text",), 8, "a block"),
        (("merged", "q"), 10, ""),
        (("merged", "r"), 13, ""),
        (("h#ash",), 14, ""),
        (("b", "x"), None, ""),
        (("a", "x"), None, ""),
    ],
)
def test_a_page_knows_the_line_and_the_comment_of_each_value(
    tmp_path: Path, keys: tuple[str | int, ...], line: int | None, comment: str
) -> None:
    for line_end in ("\n", "\r\n"):
        (tmp_path / "page.yaml").write_text(PAGE, newline=line_end)
        page = parse(tmp_path / "page.yaml")
        assert (page.line(*keys), page.comment(*keys)) == (line, comment)


def test_an_empty_page_has_no_lines(tmp_path: Path) -> None:
    (tmp_path / "page.yaml").write_text("# nothing\n")
    page = parse(tmp_path / "page.yaml")
    assert (page.content, page.line("a"), page.comment("a")) == ({}, None, "")


def test_the_last_place_wins_and_those_before_it_are_known(project: Path) -> None:
    settings = origins("optimizer.lr=0.1", "optimizer.lr=0.2").settings("optimizer.lr")
    assert [place(one) for one in settings] == [
        ("sgd.yaml:5", 0.001),
        ("tiny.yaml:12", 0.05),
        ("optimizer.lr=0.1", 0.1),
        ("optimizer.lr=0.2", 0.2),
    ]


def test_an_override_of_a_section_sets_what_it_has_inside(project: Path) -> None:
    found = origins("+model.extra={a: {b: 1}}", "strategy=ddp")
    assert [place(one) for one in found.settings("model.extra.a.b")] == [("+model.extra={a: {b: 1}}", 1)]
    assert [place(one) for one in found.settings("strategy.bucket_mib")] == [("ddp.yaml:12", 25.0)]


def test_every_choice_of_a_group_is_known(project: Path) -> None:
    found = origins("strategy=ddp", "tracker=[tensorboard]")
    assert [place(one) for one in found.choices("strategy")] == [("base.yaml:7", ["single"]), ("strategy=ddp", "ddp")]
    assert [place(one) for one in found.choices("optimizer")] == [("base.yaml:9", ["adamw"]), ("tiny.yaml:4", ["sgd"])]
    assert [place(one) for one in found.choices("tracker")][-1] == ("tracker=[tensorboard]", ["tensorboard"])
    assert found.choices("no_group") == []


def test_what_a_later_file_of_a_list_overrides_applies_to_those_before_it(project: Path) -> None:
    """As Hydra has it; the file that is included instead is the one that is read, and whose faults are told."""
    (project / "conf" / "experiment").mkdir(parents=True)
    fast = project / "conf" / "experiment" / "fast.yaml"
    fast.write_text("# @package _global_\ndefaults:\n  - override /schedule: linear\nrun: {steps: 7}\n")
    recipe = project / "recipes" / "tiny.yaml"
    recipe.write_text(recipe.read_text().replace("  - base\n", "  - base\n  - experiment: fast\n"))
    composed = compose(find("tiny"), [])
    assert composed.choices["schedule"] == "linear"
    assert [place(one) for one in composed.origins.choices("schedule")] == [
        ("base.yaml:11", ["constant"]),
        ("fast.yaml:3", ["linear"]),
    ]
    assert [place(one) for one in composed.origins.settings("run.steps")][1:] == [
        ("fast.yaml:4", 7),
        ("tiny.yaml:12", 5),
    ]


def test_a_file_that_only_hydra_can_read_is_named(project: Path) -> None:
    """Which file an interpolation in a defaults list names is known to Hydra alone."""
    (project / "conf" / "experiment").mkdir(parents=True)
    local = project / "conf" / "experiment" / "local.yaml"
    local.write_text("# @package _global_\nsweep: {dir: !!binary aGk=}\n")
    recipe = project / "recipes" / "tiny.yaml"
    recipe.write_text(recipe.read_text().replace("  - base\n", "  - base\n  - experiment: ${launch}\n"))
    with pytest.raises(SpecError, match="experiment/local: line 2 has a value tagged !!binary") as wrong:
        origins().settings("run.steps")
    assert wrong.value.faults[0].origin == f"{local.relative_to(project)}:2"
