"""What stands for a part or section that could not be built, so that all others can still be checked."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

__all__ = ["UNKNOWN", "NotKnown", "as_far_as_known"]

T = TypeVar("T")


class NotKnown(AttributeError):
    """Something that could not be built was asked for. An AttributeError, so that isinstance of a protocol is False."""


class _Unknown:
    """Stands for a part or section that could not be built, so that checks of all others can still run."""

    def __getattr__(self, name: str) -> Any:
        raise NotKnown(name)


UNKNOWN: Any = _Unknown()


def as_far_as_known(check: Callable[[], Iterable[T]]) -> Iterator[T]:
    """What a check yields until it asks for something that could not be built."""
    try:
        yield from check()
    except NotKnown:
        return
