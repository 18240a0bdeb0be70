"""Signals that end a program which starts runs: they raise, so that it can end its runs first."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from runner.world.stop import ENDING_SIGNALS

__all__ = ["StoppedBySignal", "interrupted_by_signals"]


class StoppedBySignal(KeyboardInterrupt):
    """A signal that ends the program, and its run as it would end one."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Let every signal that stops a run interrupt the block; those that are ignored stay so."""

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        raise StoppedBySignal(signum)

    before = {
        number: signal.getsignal(number) for number in ENDING_SIGNALS if signal.getsignal(number) != signal.SIG_IGN
    }
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
