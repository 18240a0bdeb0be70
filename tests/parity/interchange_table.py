"""Print, as Markdown, what test_interchange.py measured: the largest difference of the next three losses of each pair.

python -m pytest tests/parity/test_interchange.py --numprocesses 2 --dist worksteal --junitxml matrix.xml
python tests/parity/interchange_table.py matrix.xml
"""

import ast
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple
from xml.etree import ElementTree


class Cell(NamedTuple):
    """One continued run, as the test's property `interchange` tells of it."""

    saved: str
    saved_ranks: int
    loaded: str
    loaded_ranks: int
    difference: float

    @property
    def loaded_as(self) -> str:
        """A column of the table: all products of axes of strategy=parallel are one."""
        return "axes" if " " in self.loaded else self.loaded


def cells(path: str) -> Iterator[Cell]:
    """Of one report."""
    for found in ElementTree.parse(path).iter("property"):
        if found.get("name") == "interchange":
            yield Cell(*ast.literal_eval(str(found.get("value"))))


def table(corner: str, found: Iterable[Cell], row: Callable[[Cell], str], column: Callable[[Cell], str]) -> list[str]:
    """The largest difference of each place, in units of 1e-8; 0 is equal to the last bit."""
    largest: dict[tuple[str, str], float] = {}
    for cell in found:
        place = row(cell), column(cell)
        largest[place] = max(largest.get(place, 0.0), cell.difference)
    rows, columns = (sorted({place[side] for place in largest}) for side in (0, 1))
    lines = [[corner, *(f"`{name}`" for name in columns)], ["---"] * (len(columns) + 1)]
    for name in rows:
        values = [largest.get((name, other)) for other in columns]
        lines.append([f"`{name}`", *("" if one is None else f"{one * 1e8:.1f}" if one else "0" for one in values)])
    return [f"| {' | '.join(line)} |" for line in lines]


def main(paths: list[str]) -> None:
    """Both tables, over all reports together."""
    found = {cell[:4]: cell for path in paths for cell in cells(path)}.values()  # of a pair measured again, the last
    print(f"{len(found)} pairs, {sum(cell.difference == 0 for cell in found)} of them without any difference\n")
    by_strategy = table("saved ↓, loaded →", found, lambda one: one.saved, lambda one: one.loaded_as)
    by_ranks = table("processes ↓→", found, lambda one: str(one.saved_ranks), lambda one: str(one.loaded_ranks))
    print("\n".join([*by_strategy, "", *by_ranks]))


if __name__ == "__main__":
    main(sys.argv[1:])
