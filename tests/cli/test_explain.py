"""`runner explain`: a block of lines or an object for each value, in colour on a terminal only."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Runner = Callable[..., tuple[int, str, str]]


def test_a_value_is_explained_in_a_few_lines(runner: Runner) -> None:
    code, out, err = runner("explain", "tiny", "run.steps", "run.steps=7")
    assert (code, err) == (0, "")
    assert out == (
        "run.steps = 7\n"
        "    set by      the command line: run.steps=7\n"
        "    instead of  5, recipes/tiny.yaml:8\n"
        f"                ???, {_conf('base.yaml')}:45\n"
        "    type        a whole number\n"
        "    rule        at least 1\n"
        "    meaning     Optimizer steps of the whole run; schedules span them.\n"
    )


def _conf(name: str) -> str:
    return str(Path(__file__).parents[2] / "conf" / name)


def test_a_group_and_an_interpolation_have_lines_of_their_own(runner: Runner) -> None:
    out = runner("explain", "+model.depth=${model.width}", "tiny", "strategy", "strategy=fsdp")[1]
    assert out.startswith("strategy = fsdp\n    chosen by   the command line: strategy=fsdp\n    instead of  single, ")
    assert "    choices     ddp, " in out
    assert "strategy.wrap_classes = []\n" in out
    assert "    written     ${blocks.classes}\n" in out
    assert "    choices     full_shard: " in out


def test_json_has_the_same_for_machines(runner: Runner) -> None:
    found = json.loads(runner("explain", "tiny", "optimizer", "optimizer.lr=0.1", "--json")[1])
    group, lr = found[0], next(one for one in found if one["key"] == "optimizer.lr")
    assert (group["key"], group["option"], group["set_by"]["option"]) == ("optimizer", "adamw", "adamw")
    assert lr["set_by"] == {"override": "optimizer.lr=0.1", "value": 0.1}
    (replaced,) = lr["instead_of"]
    assert (replaced["file"], replaced["value"]) == (_conf("optimizer/adamw.yaml"), 0.001)
    assert Path(replaced["file"]).read_text().splitlines()[replaced["line"] - 1].startswith("lr: ")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "RECIPE: must be given: runner explain RECIPE"),
        (["tiny", "run", "optimizer"], "'optimizer' is neither a flag nor an override (key=value)"),
        (["tiny", "run.step"], "run.step: there is no such key. Did you mean run.steps?"),
        (["tniy"], "Did you mean tiny?"),
    ],
)
def test_what_cannot_be_explained_is_one_fault(runner: Runner, argv: list[str], words: str) -> None:
    code, out, err = runner("explain", *argv)
    assert (code, out) == (2, "")
    assert words in err


def test_what_a_terminal_would_obey_is_escaped(runner: Runner, project: Path) -> None:
    recipe = project / "recipes" / "tiny.yaml"
    recipe.write_text(f'{recipe.read_text()}sweep: {{dir: "a\\e[2J"}}\nlog: {{every_steps: 3}}  # \u202egnip\n')
    out = runner("explain", "tiny")[1]
    assert out.isascii() or not {"\x1b", "\u202e"} & set(out)
    assert 'sweep.dir = "a\\e[2J"' in out


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colour_is_for_terminals_that_want_it(project: Path, no_color: str, coloured: bool) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm", "NO_COLOR": no_color}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "runner", "explain", "tiny", "run.seed"]
    with subprocess.Popen(command, stdout=theirs, env=environment) as process:
        os.close(theirs)
        said = b""
        try:
            while chunk := os.read(ours, 4096):
                said += chunk
        except OSError:  # the other end is closed
            pass
        try:
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
            os.close(ours)
    assert b"run.seed" in said
    assert (b"\x1b[36m" in said) is coloured  # cyan


def test_completion_goes_on_after_the_key(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", "runner explain tiny run.steps strat")
    assert "strategy=" in runner("-sc", "query=bash")[1].split()
