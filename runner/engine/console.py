"""Progress of a run on rank 0's stderr: a bar on a terminal, plain lines otherwise; nothing on other ranks."""

import sys
from collections.abc import Mapping
from typing import Protocol, final

from runner.engine.bar import Bar
from runner.engine.pace import Pace, format_count
from runner.log import logger

__all__ = ["BarConsole", "Console", "LineConsole", "SilentConsole", "format_speed", "open_console"]


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
    pace = Pace("step", total=steps, start=start)
    return BarConsole(pace) if sys.stderr.isatty() else LineConsole(pace)


@final
class LineConsole:
    """One line at each logging step: `step 120/600 | loss 2.31 | 41.2k items/s | eta 0:01:12`."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def log(self, step: int, values: Mapping[str, float], items_per_s: float) -> None:
        """Print the values as one line."""
        # Not through the log, which would double its cost: the values are in metrics.jsonl anyway.
        print(f"{self._pace.position(step)} | {format_speed(self._pace, step, values, items_per_s)}", file=sys.stderr)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics as one line."""
        logger.info("%s", _evaluation(self._pace.position(step), metrics))

    def close(self) -> None:
        """Do nothing, on this rank."""


@final
class BarConsole:
    """A progress bar on the last line of the terminal; log lines appear above it."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._bar = Bar(pace)

    def log(self, step: int, values: Mapping[str, float], items_per_s: float) -> None:
        """Update the bar, unless that was done a moment ago."""
        self._bar.show(step, lambda: format_speed(self._pace, step, values, items_per_s))

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one line, which appears above the bar."""
        logger.info("%s", _evaluation(self._pace.position(step), metrics))

    def close(self) -> None:
        """Draw the last values and leave the bar on the terminal."""
        self._bar.close()


@final
class SilentConsole:
    """Shows nothing: the console of every rank except rank 0."""

    def log(self, step: int, values: Mapping[str, float], items_per_s: float) -> None:
        """Do nothing, on this rank."""

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing, on this rank."""

    def close(self) -> None:
        """Do nothing, on this rank."""


def format_speed(pace: Pace, step: int, values: Mapping[str, float], items_per_s: float) -> str:
    """Format as `loss 2.31 | 41.2k items/s | eta 0:01:12`; the eta includes evaluations and checkpoints."""
    loss = f"loss {values['train/loss']:.4g} | " if "train/loss" in values else ""
    return f"{loss}{format_count(items_per_s)} items/s | {pace.eta(step)}"


def _evaluation(step: str, metrics: Mapping[str, float]) -> str:
    return " | ".join((step, *(f"{name} {value:.4g}" for name, value in metrics.items())))
