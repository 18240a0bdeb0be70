"""A request to stop, made by a signal and honoured at the next step boundary."""

import signal
from types import FrameType
from typing import final


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
