"""Files of a run's directory that a crash, a disk or an editor has damaged: recognised, reported and set aside."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, final

from runner.errors import DiskError, RunnerError

__all__ = ["Damaged", "free_name", "list_of_objects", "read_json", "read_text", "set_aside", "warn"]

T = TypeVar("T")


@final
class Damaged(RunnerError):
    """A file whose content cannot be what the runner wrote."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged: {reason}.")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type["Damaged"], tuple[Path, str]]:
        return Damaged, (self.path, self.reason)  # what goes to another process


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it is empty, or is not UTF-8.
        DiskError: the file system does not let it be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DiskError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise Damaged(path, f"byte {error.start} is not UTF-8") from None
    if not text.strip("\0 \n"):
        raise Damaged(path, "it is empty")
    return text


def read_json(path: Path, check: Callable[[Any], T]) -> T:
    """The checked content of a JSON file.

    Args:
        check: returns the value as what it must be, or raises ValueError, TypeError or KeyError.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it is not JSON, or is not what it must be.
        DiskError: the file system does not let it be read.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(path, f"it is not JSON ({error})") from None
    try:
        return check(value)
    except KeyError as error:
        raise Damaged(path, f"it holds no {error}") from None
    except (ValueError, TypeError) as error:
        raise Damaged(path, str(error)) from None


def list_of_objects(value: Any) -> list[dict[str, Any]]:
    """A list of JSON objects, for `read_json`.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError("it does not hold a list of objects")
    return value


def free_name(path: Path) -> Path:
    """<name>.damaged-<n>, with the first number that is free. For whoever holds the run's lock."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return aside


def set_aside(path: Path) -> Path:
    """Rename a damaged file, and return its new name. For whoever holds the run's lock."""
    return path.rename(free_name(path))


def warn(message: str) -> None:
    """Print one line on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
