"""Progress of a prediction on rank 0's stderr: a bar on a terminal, a line from time to time otherwise."""

import sys
import time
from datetime import timedelta
from typing import Protocol, final

from runner.engine.console import REFRESH_S, format_count

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
    return _Bar(total, start) if sys.stderr.isatty() else _Lines(total, start)


@final
class _Pace:
    """Formats as `items 120/600 | 41.2k items/s | eta 0:01:12`."""

    def __init__(self, total: int, start: int) -> None:
        self.total, self._start, self._began = total, start, time.monotonic()

    def text(self, items: int) -> str:
        per_s = max(items - self._start, 1) / max(time.monotonic() - self._began, 1e-9)
        eta = timedelta(seconds=round((self.total - items) / per_s))
        return f"items {items}/{self.total} | {format_count(per_s)} items/s | eta {eta}"


@final
class _Lines:
    def __init__(self, total: int, start: int) -> None:
        self._pace, self._items, self._shown = _Pace(total, start), start, time.monotonic()

    def show(self, items: int) -> None:
        self._items = items
        if time.monotonic() - self._shown >= LINE_S:
            self._print()

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        print(self._pace.text(self._items), file=sys.stderr)
        self._shown = time.monotonic()


@final
class _Bar:
    def __init__(self, total: int, start: int) -> None:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, Progress, TextColumn

        self._pace, self._items, self._drawn = _Pace(total, start), start, time.monotonic()
        columns = BarColumn(bar_width=None), TextColumn("{task.description}")
        self._bar = Progress(*columns, console=Terminal(stderr=True), auto_refresh=False, redirect_stdout=False)
        self._task = self._bar.add_task("", total=total, completed=start)
        self._bar.start()

    def show(self, items: int) -> None:
        self._items = items
        if time.monotonic() - self._drawn >= REFRESH_S:
            self._draw()

    def close(self) -> None:
        self._draw()
        self._bar.stop()

    def _draw(self) -> None:
        self._bar.update(self._task, completed=self._items, description=self._pace.text(self._items), refresh=True)
        self._drawn = time.monotonic()


@final
class _Silent:
    def show(self, items: int) -> None:
        """Do nothing, on this rank."""

    def close(self) -> None:
        """Do nothing, on this rank."""
