"""Signals to the launcher of several ranks: the ranks are asked to stop, and killed if they do not."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from types import FrameType
from typing import Any, Self, final

from runner import terminal
from runner.launch.rank import DUMP_STACKS
from runner.world.stop import ENDING_SIGNALS, STOP_SIGNALS

STOPPING = "stopping after this step; press Ctrl-C again to stop at once"
ENDING = "ending at once; the logs have the stacks of all threads"
# `timeout` and wrappers such as make forward a signal that the whole process group receives anyway: one request, twice.
ECHO_S = 0.2
DUMP_S = 0.3
"""How long ranks have to write their stacks before they are killed."""
# Torch's agent must be given at least one signal to handle: one that nobody sends.
FOR_TORCH = signal.SIGVTALRM


@final
class Signals:
    """Handles the signals that ask a run to stop, and SIGQUIT, while it is entered. Main thread only.

    The first one sends SIGUSR1 (save a checkpoint and return) to every rank and starts a timer; SIGINT after that, or
    the end of the timer, sends SIGKILL. SIGQUIT makes the ranks write their stacks, and ends them. Each rank leads a
    process group, so that its own children end with it.
    """

    def __init__(self, *, interrupt_s: float, grace_s: float) -> None:
        self.stop_requested = False
        self._requested_at = 0.0
        self._deadline = float("inf")
        self._seconds = dict.fromkeys(STOP_SIGNALS, grace_s) | {signal.SIGINT: interrupt_s}
        self._ranks: list[int] = []
        self._launcher = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in ENDING_SIGNALS:
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
        self._send_to_groups(signal.SIGKILL)
        self._send(signal.SIGKILL)  # one that was just forked may not lead a group yet

    def dump_stacks(self) -> None:
        """Make every rank and its data workers write the stacks of their threads to the rank's log."""
        self._send_to_groups(DUMP_STACKS)
        self._send(signal.SIGCONT)  # one that was stopped writes its stack as it goes on

    def _send_to_groups(self, number: signal.Signals) -> None:
        for pid in self._ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)

    def _send(self, number: signal.Signals) -> None:
        for pid in self._ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._launcher:
            return  # a rank that was just forked and has not installed its own handlers yet
        now = time.monotonic()
        requested, self.stop_requested = self.stop_requested, True
        if signum == signal.SIGQUIT:
            terminal.write(2, f"{ENDING}\n")
            self.dump_stacks()
            self._set_deadline(now, DUMP_S)
        elif not requested:
            self._requested_at = now
            terminal.write(2, f"{STOPPING}\n")
            self._send(signal.SIGUSR1)
            self._set_deadline(now, self._seconds[signal.Signals(signum)])
        elif signum == signal.SIGINT and now - self._requested_at > ECHO_S:
            self.kill()

    def _set_deadline(self, now: float, seconds: float) -> None:
        if now + seconds < self._deadline:
            self._deadline = now + seconds
            # Again every 0.1 s: a rank may be forked during the first alarm. 0 s would switch the timer off.
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 0.1)

    def _on_deadline(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() == self._launcher:
            self.kill()
