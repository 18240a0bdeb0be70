"""A progress bar on the last line of the terminal; log lines appear above it."""

from collections.abc import Callable
from typing import final

from runner.engine.pace import Pace

REFRESH_S = 0.1  # between two redraws of the bar; one takes 1 to 2 ms, as long as ten steps of a tiny model


@final
class Bar:
    """Draws only when called, at most once per REFRESH_S."""

    def __init__(self, pace: Pace) -> None:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, Progress, TextColumn

        self._pace = pace
        columns = TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[speed]}")
        terminal = Terminal(stderr=True)
        # A thread of rich would draw in the middle of steps, and would not exist in data workers forked meanwhile.
        self._bar = Progress(*columns, console=terminal, auto_refresh=False, redirect_stdout=False, expand=True)
        place = pace.position(pace.start)
        self._task = self._bar.add_task(place, total=pace.total, completed=pace.start, speed="")
        self._last: tuple[int, Callable[[], str]] | None = None
        self._drawn_at = pace.clock()
        self._bar.start()
        self._bar.refresh()

    def show(self, done: int, speed: Callable[[], str]) -> None:
        """Take the last values, and draw them unless that was done a moment ago."""
        self._last = done, speed
        if self._pace.clock() - self._drawn_at >= REFRESH_S:
            self._draw()

    def close(self) -> None:
        """Draw the last values and leave the bar on the terminal."""
        self._draw()
        self._bar.stop()

    def _draw(self) -> None:
        if self._last is None:
            return
        done, speed = self._last
        place = self._pace.position(done)
        self._bar.update(self._task, completed=done, description=place, speed=speed(), refresh=True)
        self._drawn_at = self._pace.clock()
