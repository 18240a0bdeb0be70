"""Names under which other libraries know an option. Its own file has them, in a line of its header:

# Aliases: full_shard, fsdp2
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["find_aliased"]

LINE = "# Aliases: "


def find_aliased(name: str, group: str, directories: Sequence[Path]) -> list[str]:
    """The options of a group that are called so elsewhere; case and the kind of dash do not matter."""
    wanted = _plain(name)
    found = (path.stem for path in _files(group, directories) if wanted in _names(path))
    return list(dict.fromkeys(found))


def _files(group: str, directories: Sequence[Path]) -> Iterator[Path]:
    for directory in directories:
        yield from sorted(directory.glob(f"{group}/*.yaml"))


def _names(path: Path) -> list[str]:
    lines = (line for line in path.read_text().splitlines() if line.startswith(LINE))
    return [_plain(name) for line in lines for name in line.removeprefix(LINE).split(",")]


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_")
