"""A wish to stop, raised by a signal and granted at the next step boundary."""

import signal
from types import FrameType
from typing import final


@final
class StopRequest:
    """A flag that a signal handler sets and the loop reads; a handler does nothing else (Lightning #21406)."""

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        """Ask the run to commit and return at its next step boundary."""
        self.requested = True

    def install(self, *signals: signal.Signals) -> None:
        """Let each of these signals make the request. Main thread only."""
        for number in signals:
            signal.signal(number, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.request()
