"""The table of docs/reliability.md: a row for each test that is marked with `fault`.

python tests/faults/table.py            # print it
python tests/faults/table.py --write    # and put it into the page
"""

import ast
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs" / "reliability.md"
HEAD = "| what goes wrong | what happens | test |\n| --- | --- | --- |\n"


class Row(NamedTuple):
    """One marked test."""

    path: Path
    test: str
    what: str
    then: str


def rows() -> list[Row]:
    """Of all test files; those of tests/faults first, each file's in the order in which they stand there."""
    files = sorted((CHECKOUT / "tests").rglob("test_*.py"), key=lambda path: (path.parent.name != "faults", path))
    return [row for path in files for row in rows_of(path)]


def rows_of(path: Path) -> Iterator[Row]:
    """Of one file."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    what, then = map(ast.literal_eval, mark.args)
                    yield Row(path.relative_to(CHECKOUT), node.name, what, then)


def table() -> str:
    """As Markdown. A file is named in its first row."""
    lines = [HEAD]
    before = None
    for row in rows():
        file = "" if row.path == before else f"`{row.path}`"
        before = row.path
        lines.append(f"| {row.what} | {row.then} | {file} |\n".replace(" |  |", " | |"))
    return "".join(lines)


def written() -> str:
    """The table as it is in the page."""
    _, head, rest = PAGE.read_text().partition(HEAD)
    lines = takewhile(lambda line: line.startswith("|"), rest.splitlines(keepends=True))
    return head + "".join(lines)


if __name__ == "__main__":
    print(table(), end="")
    if "--write" in sys.argv[1:]:
        PAGE.write_text(PAGE.read_text().replace(written(), table()))
