"""`runner recipes`: a line each."""

from pathlib import Path

from runner.compose.recipe import recipe_files
from runner.errors import Fault, SpecError

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Name and first comment line of every recipe that a bare name reaches."""
    if argv:
        raise SpecError(
            Fault(
                key="command line",
                message=f"{argv[0]!r}: runner recipes takes nothing.",
            )
        )
    files = recipe_files()
    width = max((len(name) for name in files), default=0)
    for name, path in files.items():
        print(f"{name:<{width}}  {_first_comment(path)}".rstrip())
    if not files:
        print(f"There are none in {Path.cwd() / 'recipes'}.")
    return 0


def _first_comment(path: Path) -> str:
    lines = (line.strip() for line in path.read_text().splitlines())
    comments = (line.lstrip("# ") for line in lines if line.startswith("#") and not line.startswith("# @package"))
    return next((comment for comment in comments if comment), "")
