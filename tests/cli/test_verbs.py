"""Verbs are found in their files, and their help is generated from what they declare."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.cli import verbs
from runner.cli.verb import load_verb, parser_of, verb_names
from runner.cli.verbs import export
from runner.storage.export import FLOATS

GREET = '''\
"""Greet somebody.

More about it.
"""

USAGE = "NAME [options]"


def add_arguments(parser):
    parser.add_argument("name", metavar="NAME", help="who is greeted")
    parser.add_argument("--times", type=int, default=1, help="how often")


def main(arguments):
    print(" ".join(arguments.command), f"hello {arguments.name} " * arguments.times)
    return 3
'''


@pytest.fixture
def greet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "verbs").mkdir()
    (tmp_path / "verbs" / "greet.py").write_text(GREET)
    monkeypatch.setattr(verbs, "__path__", [*verbs.__path__, str(tmp_path / "verbs")])
    yield
    monkeypatch.delitem(sys.modules, "runner.cli.verbs.greet", raising=False)


def test_a_new_verb_is_one_file(
    runner: Callable[..., tuple[int, str, str]], greet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = runner("greet", "--times", "2", "you")
    assert (code, out) == (3, "runner greet --times 2 you hello you hello you \n")
    assert re.search(r"^  greet NAME \[options\] +Greet somebody$", runner("--help")[1], re.MULTILINE)
    assert "Did you mean greet?" in runner("gret")[2]
    help_page = runner("greet", "--help")[1]
    assert help_page.startswith("usage: runner greet NAME [options]\n\nGreet somebody.\n\nMore about it.\n")
    assert "--times TIMES  how often" in help_page
    code, _, err = runner("greet", "you", "--times", "x")
    assert (code, err) == (2, "command line: argument --times: invalid int value: 'x'. See: runner greet --help\n")
    monkeypatch.setenv("COMP_LINE", "runner gr")
    assert "greet" in runner("-sc", "query=bash")[1].split()


@pytest.mark.parametrize("name", verb_names())
def test_every_verb_documents_each_argument(name: Any) -> None:
    verb = load_verb(name)
    assert verb.__doc__
    parser = parser_of(name, verb, command=[])
    assert all(action.help for action in parser._actions)
    assert verb.USAGE.split()[:1] in (
        [],
        ["RECIPE"],
        ["DIR"],
        ["DIR|RECIPE"],
        ["FILE"],
        ["[DIR]"],
        ["[GROUP"],
        ["[options]"],
    )


def test_the_types_of_an_export_are_those_that_can_be_written() -> None:
    assert export.DTYPES == FLOATS
