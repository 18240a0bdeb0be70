"""The map of the house names every room, and every law that the code cites by number is written down."""

import re
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
DESIGN = (CHECKOUT / "docs" / "design.md").read_text()
LAWS = {int(number) for number in re.findall(r"^(\d+)\. \*\*", DESIGN, re.MULTILINE)}
ROOMS = set(re.findall(r"^\| `(\w+)/?` \|", DESIGN, re.MULTILINE))
CITED = re.compile(r"\blaws? (\d+(?:(?:, | and )\d+)*)", re.IGNORECASE)


def cited(path: Path) -> Iterator[int]:
    """The numbers of the laws that a file cites."""
    for numbers in CITED.findall(path.read_text()):
        yield from map(int, re.findall(r"\d+", numbers))


def test_every_room_is_on_the_map() -> None:
    package = CHECKOUT / "runner"
    rooms = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    assert rooms - {"__init__"} <= ROOMS


def test_every_law_that_is_cited_is_written_down() -> None:
    assert sorted(LAWS) == list(range(1, len(LAWS) + 1))
    files = [path for room in ("runner", "tests", "benchmarks") for path in (CHECKOUT / room).rglob("*.py")]
    files += [*(CHECKOUT / "docs").rglob("*.md"), *(CHECKOUT / "conf").rglob("*.yaml")]
    numbers = {number for path in files for number in cited(path)}
    assert {3, 4, 5, 6} <= numbers <= LAWS
