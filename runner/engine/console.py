"""Progress of a run on rank 0's stderr: a bar on a terminal, plain lines otherwise; nothing on other ranks."""

import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Protocol, final

from runner.log import logger

__all__ = ["BarConsole", "Console", "LineConsole", "SilentConsole", "open_console"]

REFRESH_S = 0.1  # between two redraws of the bar; one takes 1 to 2 ms, as long as ten steps of a tiny model


class Console(Protocol):
    """Shows the progress of a run. Draws only when called; there is no background thread."""

    def log(self, step: int, values: Mapping[str, float], items_per_s: float) -> None:
        """Show the values of a logging step."""
        ...

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of an evaluation."""
        ...

    def close(self) -> None:
        """Stop drawing and restore the terminal."""
        ...


def open_console(*, steps: int, start: int, is_main: bool) -> Console:
    """Choose the console by rank and by whether stderr is a terminal.

    Args:
        steps: optimizer steps of the whole run.
        start: steps completed before this attempt.
        is_main: whether this is rank 0.
    """
    if not is_main:
        return SilentConsole()
    pace = Pace(steps=steps, start=start)
    return BarConsole(pace) if sys.stderr.isatty() else LineConsole(pace)


@final
class Pace:
    """Formats the progress of a run and estimates the remaining time."""

    def __init__(self, *, steps: int, start: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.steps = steps
        self.start = start
        self.clock = clock
        self._began = clock()

    def format_step(self, step: int) -> str:
        """Format as `step 120/600`."""
        return f"step {step}/{self.steps}"

    def format_speed(self, step: int, values: Mapping[str, float], items_per_s: float) -> str:
        """Format as `loss 2.31 | 41.2k items/s | eta 0:01:12`."""
        loss = f"loss {values['train/loss']:.4g} | " if "train/loss" in values else ""
        return f"{loss}{format_count(items_per_s)} items/s | eta {timedelta(seconds=self._remaining_s(step))}"

    def _remaining_s(self, step: int) -> int:
        """Estimate from the mean speed of this attempt, including evaluations and checkpoints."""
        taken_s = self.clock() - self._began
        return round(taken_s / max(step - self.start, 1) * (self.steps - step))


@final
class LineConsole:
    """One line at each logging step: `step 120/600 | loss 2.31 | 41.2k items/s | eta 0:01:12`."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def log(self, step: int, values: Mapping[str, float], items_per_s: float) -> None:
        """Print the values as one line."""
        # Not through the log, which would double its cost: the values are in metrics.jsonl anyway.
        print(f"{self._pace.format_step(step)} | {self._pace.format_speed(step, values, items_per_s)}", file=sys.stderr)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics as one line."""
        logger.info("%s", _evaluation(self._pace.format_step(step), metrics))

    def close(self) -> None:
        """Do nothing, on this rank."""


@final
class BarConsole:
    """A progress bar on the last line of the terminal; log lines appear above it."""

    def __init__(self, pace: Pace) -> None:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, Progress, TextColumn

        self._pace = pace
        columns = TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[speed]}")
        terminal = Terminal(stderr=True)
        # A thread of rich would draw in the middle of steps, and would not exist in data workers forked meanwhile.
        self._bar = Progress(*columns, console=terminal, auto_refresh=False, redirect_stdout=False, expand=True)
        self._task = self._bar.add_task(pace.format_step(pace.start), total=pace.steps, completed=pace.start, speed="")
        self._last: tuple[int, Mapping[str, float], float] | None = None
        self._drawn_at = pace.clock()
        self._bar.start()
        self._bar.refresh()

    def log(self, step: int, values: Mapping[str, float], items_per_s: float) -> None:
        """Update the bar, at most once per REFRESH_S."""
        self._last = step, values, items_per_s
        if self._pace.clock() - self._drawn_at >= REFRESH_S:
            self._draw()

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one line, which appears above the bar."""
        logger.info("%s", _evaluation(self._pace.format_step(step), metrics))

    def close(self) -> None:
        """Draw the last values and leave the bar on the terminal."""
        self._draw()
        self._bar.stop()

    def _draw(self) -> None:
        if self._last is None:
            return
        step, values, items_per_s = self._last
        speed = self._pace.format_speed(step, values, items_per_s)
        self._bar.update(
            self._task, completed=step, description=self._pace.format_step(step), speed=speed, refresh=True
        )
        self._drawn_at = self._pace.clock()


@final
class SilentConsole:
    """Shows nothing: the console of every rank except rank 0."""

    def log(self, step: int, values: Mapping[str, float], items_per_s: float) -> None:
        """Do nothing, on this rank."""

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing, on this rank."""

    def close(self) -> None:
        """Do nothing, on this rank."""


def format_count(number: float) -> str:
    """Three digits and a unit: 7.25, 412, 41.2k, 1.30M."""
    units = iter(("", "k", "M", "G", "T"))
    unit = next(units)
    while abs(number) >= 999.5 and unit != "T":
        number, unit = number / 1000, next(units)
    decimals = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{decimals}f}{unit}"


def _evaluation(step: str, metrics: Mapping[str, float]) -> str:
    return " | ".join((step, *(f"{name} {value:.4g}" for name, value in metrics.items())))
