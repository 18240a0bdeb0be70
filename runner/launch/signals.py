"""What a signal to the launcher of several ranks leads to: they are asked to stop, and killed if they do not."""

import os
import signal
import sys
import time
from collections.abc import Iterable
from types import FrameType
from typing import Any, Self, final

STOPPING = "stopping after this step; another Ctrl-C stops at once"
# `timeout` and wrappers such as make pass a signal on that also reaches the whole process group: one wish, twice.
ECHO_S = 0.2
# Torch's agent must be given at least one signal to take over: one that nobody sends.
FOR_TORCH = signal.SIGVTALRM


@final
class Signals:
    """Takes SIGINT, SIGTERM and SIGHUP over while it is entered. Main thread only.

    The first sends SIGUSR1 (commit and return) to every rank and starts the clock; a second one, or the end of the
    clock, sends SIGKILL. Each rank leads a process group, so that its own children go with it.
    """

    def __init__(self, *, interrupt_s: float, grace_s: float) -> None:
        self.asked = False
        self._asked_at = 0.0
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
        """These are the ranks now."""
        self._ranks = list(pids)
        if self.asked:
            self._send(signal.SIGUSR1)

    def kill(self) -> None:
        """End every rank and what it started, at once."""
        for pid in self._ranks:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # gone with all its children, or forked a moment ago and not yet a group: _send reaches it
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for pid in self._ranks:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._launcher:
            return  # a rank in the moment between its fork and its own handlers
        now = time.monotonic()
        if not self.asked:
            self.asked, self._asked_at = True, now
            print(STOPPING, file=sys.stderr, flush=True)
            self._send(signal.SIGUSR1)
            self._set_deadline(self._seconds[signal.Signals(signum)])
        elif now - self._asked_at > ECHO_S:
            self.kill()

    def _set_deadline(self, seconds: float) -> None:
        # Every 0.1 s from then on: a rank may be forked while the first alarm goes off. 0 would switch the timer off.
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 0.1)

    def _on_deadline(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() == self._launcher:
            self.kill()
