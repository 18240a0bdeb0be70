"""Compare the files of a wheel with those of the source that it was built from.

Usage: python scripts/check_wheel.py WHEEL SOURCE
"""

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "runner"
SHIPPED = ("conf", "recipes", "user_hooks")
"""Folders of the source that stand in runner/_shipped/ in a wheel."""
METADATA = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")


def differences(wheel: Path, source: Path) -> list[str]:
    """One line for each file that the wheel lacks, or has and must not have, such as a test."""
    there = set(zipfile.ZipFile(wheel).namelist())
    expected = set(_expected(wheel, source))
    missing = [f"missing: {name}" for name in sorted(expected - there)]
    return missing + [f"must not be there: {name}" for name in sorted(there - expected)]


def _expected(wheel: Path, source: Path) -> Iterator[str]:
    for folder in (PACKAGE, *SHIPPED):
        inside = f"{PACKAGE}/_shipped/{folder}" if folder in SHIPPED else folder
        for path in (source / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{inside}/{path.relative_to(source / folder).as_posix()}"
    name, version = wheel.name.split("-")[:2]
    yield from (f"{name}-{version}.dist-info/{file}" for file in METADATA)


def main(wheel: str, source: str) -> int:
    """Print the differences; 1 if there are any."""
    found = differences(Path(wheel), Path(source))
    print("\n".join(found) or f"{Path(wheel).name} has every file that it must have, and no other")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
