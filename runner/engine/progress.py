"""Progress of a prediction on rank 0's stderr: a bar on a terminal, a line from time to time otherwise."""

import sys
from typing import Protocol, final

from runner.engine.bar import Bar
from runner.engine.pace import Pace, format_count

__all__ = ["Progress", "open_progress"]

LINE_S = 10.0


class Progress(Protocol):
    """Shows how many items are done."""

    def show(self, items: int) -> None:
        """Show it, unless it was shown a moment ago."""
        ...

    def close(self) -> None:
        """Show it for the last time, and restore the terminal."""
        ...


def open_progress(total: int, *, start: int, is_main: bool) -> Progress:
    """Choose by rank, and by whether stderr is a terminal.

    Args:
        total: items of the dataset.
        start: items that are done already.
        is_main: whether this is rank 0.
    """
    if not is_main:
        return _Silent()
    pace = Pace("items", total=total, start=start)
    return _Bar(pace) if sys.stderr.isatty() else _Lines(pace)


def _speed(pace: Pace, items: int) -> str:
    """Format as `41.2k items/s | eta 0:01:12`."""
    return f"{format_count(pace.per_s(items))} items/s | {pace.eta(items)}"


@final
class _Lines:
    def __init__(self, pace: Pace) -> None:
        self._pace, self._items, self._shown = pace, pace.start, pace.clock()

    def show(self, items: int) -> None:
        self._items = items
        if self._pace.clock() - self._shown >= LINE_S:
            self._print()

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        print(f"{self._pace.position(self._items)} | {_speed(self._pace, self._items)}", file=sys.stderr)
        self._shown = self._pace.clock()


@final
class _Bar:
    def __init__(self, pace: Pace) -> None:
        self._pace, self._bar = pace, Bar(pace)

    def show(self, items: int) -> None:
        self._bar.show(items, lambda: _speed(self._pace, items))

    def close(self) -> None:
        self._bar.close()


@final
class _Silent:
    def show(self, items: int) -> None:
        """Do nothing, on this rank."""

    def close(self) -> None:
        """Do nothing, on this rank."""
