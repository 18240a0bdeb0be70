"""Alternative names for an option, such as the ones other libraries use. An option file lists its own in its header:

# Aliases: full_shard, fsdp2
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["find_aliased"]

PREFIX = "# Aliases: "


def find_aliased(name: str, group: str, directories: Sequence[Path]) -> list[str]:
    """Return the options of a group that list `name` as an alias, ignoring case and treating - and _ alike."""
    wanted = _normalize(name)
    found = (path.stem for path in _option_files(group, directories) if wanted in _aliases(path))
    return list(dict.fromkeys(found))


def _option_files(group: str, directories: Sequence[Path]) -> Iterator[Path]:
    for directory in directories:
        yield from sorted(directory.glob(f"{group}/*.yaml"))


def _aliases(path: Path) -> list[str]:
    lines = (line for line in path.read_text().splitlines() if line.startswith(PREFIX))
    return [_normalize(name) for line in lines for name in line.removeprefix(PREFIX).split(",")]


def _normalize(name: str) -> str:
    return name.strip().lower().replace("-", "_")
