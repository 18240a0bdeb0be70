"""Paths that a person or a file names. A name that no file can have, because of its length for example, names none."""

from pathlib import Path

__all__ = ["exists", "is_directory", "is_file"]


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
