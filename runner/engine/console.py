"""What rank 0 shows of a run while it trains: a bar on a terminal, plain lines elsewhere, nothing on other ranks."""

import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Protocol, final

from runner.log import logger

__all__ = ["BarConsole", "Console", "LineConsole", "SilentConsole", "open_console"]

REFRESH_S = 0.1  # between two drawings of the bar; one costs 1 to 2 ms, ten steps of a tiny model


class Console(Protocol):
    """Shows how far a run is. Draws only when it is called: no thread stands beside the loop."""

    def log(self, step: int, values: Mapping[str, float], items_per_s: float) -> None:
        """What was measured at a logging step."""
        ...

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """What an evaluation yielded."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


def open_console(*, steps: int, start: int, is_main: bool) -> Console:
    """The console for this rank and what its stderr is.

    Args:
        steps: optimizer steps of the whole run.
        start: steps done before this attempt.
        is_main: whether this is rank 0.
    """
    if not is_main:
        return SilentConsole()
    pace = Pace(steps=steps, start=start)
    return BarConsole(pace) if sys.stderr.isatty() else LineConsole(pace)


@final
class Pace:
    """Says how far a run is and when it will end."""

    def __init__(self, *, steps: int, start: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.steps = steps
        self.start = start
        self.clock = clock
        self._began = clock()

    def where(self, step: int) -> str:
        """step 120/600"""
        return f"step {step}/{self.steps}"

    def how(self, step: int, values: Mapping[str, float], items_per_s: float) -> str:
        """loss 2.31 | 41.2k items/s | eta 0:01:12"""
        loss = f"loss {values['train/loss']:.4g} | " if "train/loss" in values else ""
        return f"{loss}{short(items_per_s)} items/s | eta {timedelta(seconds=self._remaining_s(step))}"

    def _remaining_s(self, step: int) -> int:
        """At the mean pace of this attempt, evaluations and checkpoints included."""
        taken_s = self.clock() - self._began
        return round(taken_s / max(step - self.start, 1) * (self.steps - step))


@final
class LineConsole:
    """One line at each logging step: `step 120/600 | loss 2.31 | 41.2k items/s | eta 0:01:12`."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def log(self, step: int, values: Mapping[str, float], items_per_s: float) -> None:
        """Say it."""
        # Not through the log, which would double its cost: what was measured stands in metrics.jsonl.
        print(f"{self._pace.where(step)} | {self._pace.how(step, values, items_per_s)}", file=sys.stderr)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Say it."""
        logger.info("%s", _evaluation(self._pace.where(step), metrics))

    def close(self) -> None:
        """Nothing to do."""


@final
class BarConsole:
    """A progress bar on the last line of the terminal; what is logged meanwhile appears above it."""

    def __init__(self, pace: Pace) -> None:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, Progress, TextColumn

        self._pace = pace
        columns = TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[how]}")
        terminal = Terminal(stderr=True)
        # A thread of rich's own would draw in mid-step, and would not live on in a data worker forked meanwhile.
        self._bar = Progress(*columns, console=terminal, auto_refresh=False, redirect_stdout=False, expand=True)
        self._task = self._bar.add_task(pace.where(pace.start), total=pace.steps, completed=pace.start, how="")
        self._last: tuple[int, Mapping[str, float], float] | None = None
        self._drawn_at = pace.clock()
        self._bar.start()
        self._bar.refresh()

    def log(self, step: int, values: Mapping[str, float], items_per_s: float) -> None:
        """Move the bar, if it has stood for long enough."""
        self._last = step, values, items_per_s
        if self._pace.clock() - self._drawn_at >= REFRESH_S:
            self._draw()

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Say it above the bar, and in the log."""
        logger.info("%s", _evaluation(self._pace.where(step), metrics))

    def close(self) -> None:
        """Draw what was last, and leave it on the terminal."""
        self._draw()
        self._bar.stop()

    def _draw(self) -> None:
        if self._last is None:
            return
        step, values, items_per_s = self._last
        how = self._pace.how(step, values, items_per_s)
        self._bar.update(self._task, completed=step, description=self._pace.where(step), how=how, refresh=True)
        self._drawn_at = self._pace.clock()


@final
class SilentConsole:
    """Shows nothing: the console of every rank but the first."""

    def log(self, step: int, values: Mapping[str, float], items_per_s: float) -> None:
        """Nothing to do."""

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def short(number: float) -> str:
    """Three digits and a unit: 7.25, 412, 41.2k, 1.30M."""
    units = iter(("", "k", "M", "G", "T"))
    unit = next(units)
    while abs(number) >= 999.5 and unit != "T":
        number, unit = number / 1000, next(units)
    decimals = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{decimals}f}{unit}"


def _evaluation(where: str, metrics: Mapping[str, float]) -> str:
    return " | ".join((where, *(f"{name} {value:.4g}" for name, value in metrics.items())))
