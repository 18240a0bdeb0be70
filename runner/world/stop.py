"""A request to stop, made by a signal and honoured at the next step boundary."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

__all__ = ["ENDING_SIGNALS", "STOP_SIGNALS", "StopRequest", "held_back"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask a run to end its step, save a checkpoint and stop: those of people, systemd, Docker and Slurm."""
ENDING_SIGNALS = (*STOP_SIGNALS, signal.SIGQUIT)
"""These, and the one that ends a run without a checkpoint, once its ranks have written their stacks."""


@final
class StopRequest:
    """A flag that a signal handler sets and the loop reads; the handler does nothing else (Lightning #21406)."""

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        """Ask the run to save a checkpoint and return at its next step boundary."""
        self.requested = True

    def install(self, *signals: signal.Signals) -> None:
        """Make each of these signals request a stop. Main thread only."""
        for number in signals:
            signal.signal(number, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.request()


@contextmanager
def held_back(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Deliver these signals after the block.

    To processes that are started in it, once they let them through: a signal that arrives before a process has
    installed its handlers would end it, or be lost in a fork that still has its parent's.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
