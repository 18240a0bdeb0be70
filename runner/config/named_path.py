"""Paths that a person or a file names, and how messages name them.

A name that no file can have, because of its length for example, names none.
"""

from pathlib import Path

__all__ = ["exists", "is_directory", "is_file", "place"]


def exists(path: Path) -> bool:
    """Whether there is something at the path."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether there is a file."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_directory(path: Path) -> bool:
    """Whether there is a directory."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def place(path: Path, line: int | None = None) -> str:
    """A file, relative to the working directory if it is in it, and a line of it: recipes/digits.yaml:22."""
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{shown}" if line is None else f"{shown}:{line}"
