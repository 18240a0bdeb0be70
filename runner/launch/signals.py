"""Signals to the launcher of several ranks: the ranks are asked to stop, and killed if they do not."""

import os
import signal
import sys
import time
from collections.abc import Iterable
from types import FrameType
from typing import Any, Self, final

STOPPING = "stopping after this step; press Ctrl-C again to stop at once"
# `timeout` and wrappers such as make forward a signal that the whole process group receives anyway: one request, twice.
ECHO_S = 0.2
# Torch's agent must be given at least one signal to handle: one that nobody sends.
FOR_TORCH = signal.SIGVTALRM


@final
class Signals:
    """Handles SIGINT, SIGTERM and SIGHUP while it is entered. Main thread only.

    The first one sends SIGUSR1 (save a checkpoint and return) to every rank and starts a timer; a second one, or the
    end of the timer, sends SIGKILL. Each rank leads a process group, so that its own children end with it.
    """

    def __init__(self, *, interrupt_s: float, grace_s: float) -> None:
        self.stop_requested = False
        self._requested_at = 0.0
        self._seconds = {signal.SIGINT: interrupt_s, signal.SIGTERM: grace_s, signal.SIGHUP: grace_s}
        self._ranks: list[int] = []
        self._launcher = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in self._seconds:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
                self._previous[number] = signal.signal(number, self._on_signal)
        self._previous[FOR_TORCH] = signal.getsignal(FOR_TORCH)
        self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_deadline)
        return self

    def __exit__(self, *exc_info: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.kill()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def watch(self, pids: Iterable[int]) -> None:
        """Send signals to these ranks from now on."""
        self._ranks = list(pids)
        if self.stop_requested:
            self._send(signal.SIGUSR1)

    def kill(self) -> None:
        """Kill every rank and what it started."""
        for pid in self._ranks:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it has ended, or was just forked and does not lead a group yet: _send reaches it
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for pid in self._ranks:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._launcher:
            return  # a rank that was just forked and has not installed its own handlers yet
        now = time.monotonic()
        if not self.stop_requested:
            self.stop_requested, self._requested_at = True, now
            print(STOPPING, file=sys.stderr, flush=True)
            self._send(signal.SIGUSR1)
            self._set_deadline(self._seconds[signal.Signals(signum)])
        elif now - self._requested_at > ECHO_S:
            self.kill()

    def _set_deadline(self, seconds: float) -> None:
        # Again every 0.1 s: a rank may be forked during the first alarm. 0 s would switch the timer off.
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 0.1)

    def _on_deadline(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() == self._launcher:
            self.kill()
