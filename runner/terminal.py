"""The standard streams of a run: a terminal that is gone, full or closed takes no more output, and never ends the run.

`runner train … | head -1`, a dead `tee`, a closed window, `2>&-`: what the run prints after that is dropped. The run's
directory has all of it.
"""

import contextlib
import errno
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO, final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["open_closed_descriptors", "protect", "report_losses", "write"]

STALL_S = 5.0
"""How long a write waits for a reader that does not read: a pager, a terminal stopped with Ctrl-S."""
CHUNK = select.PIPE_BUF
"""A pipe that poll calls writable takes as many bytes without blocking."""
GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)
"""Errors of a reader that will not come back; after others (a full disk) the next write is tried again."""


def write(descriptor: int, text: str) -> None:
    """Write a line to a descriptor, from a signal handler for instance; it is dropped where that fails."""
    with contextlib.suppress(OSError):  # it is closed
        Stream(descriptor).write(text.encode())


def open_closed_descriptors() -> None:
    """Open /dev/null where a standard descriptor is closed (`2>&-`): the next file opened would get its number."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            assert opened == descriptor, f"descriptor {descriptor} is closed, but /dev/null was opened as {opened}"
            os.set_inheritable(opened, True)


def protect() -> None:
    """Let no write to stdout or stderr raise, in this process and in its forks. Calling it again changes nothing.

    Streams that a program has put in the place of the interpreter's own are left alone.
    """
    open_closed_descriptors()
    if sys.stdout is sys.__stdout__:
        sys.stdout = _protected(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _protected(sys.stderr, 2)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def report_losses(report: Callable[[str], None]) -> None:
    """Call `report` once for each protected stream that loses output, also if it did so before."""
    for stream in (sys.stdout, sys.stderr):
        raw = _raw(stream)
        if isinstance(raw, Stream):
            raw.report_loss(report)


@final
class Stream(io.FileIO):
    """A descriptor whose failing writes are dropped, and which a reader that does not read delays only once."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._stalled = False
        self._loss = ""
        self._report: Callable[[str], None] | None = None
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write or drop all of it; returns its length."""
        view = memoryview(data).cast("B")
        position = 0
        while position < len(view):
            self._stalled = not self._poll.poll(0 if self._stalled else 1000 * STALL_S)
            if self._stalled:
                self._note_loss(f"nobody has read it for {STALL_S:g} s")
                break
            try:
                # None: a non-blocking descriptor took nothing after all.
                position += super().write(view[position : position + CHUNK]) or 0
            except OSError as error:
                self._drop(error)
                break
        return len(view)

    def report_loss(self, report: Callable[[str], None]) -> None:
        """Call this once output was lost; at once if some was."""
        self._report = report
        if self._loss:
            report(self._loss)

    def _drop(self, error: OSError) -> None:
        if error.errno in GONE:
            with contextlib.suppress(OSError):  # no descriptor is left: the next write tries again
                null = os.open(os.devnull, os.O_WRONLY)
                # Child processes and native code write to the descriptor too.
                os.dup2(null, self.fileno())
                os.close(null)
        self._note_loss(str(error))

    def _note_loss(self, reason: str) -> None:
        if not self._loss:
            name = {1: "stdout", 2: "stderr"}.get(self.fileno(), f"descriptor {self.fileno()}")
            self._loss = f"{name} cannot be written ({reason}); the run goes on without it"
            if self._report is not None:
                self._report(self._loss)


def _protected(stream: TextIO | None, descriptor: int) -> io.TextIOWrapper:
    """The same stream, writing through Stream. None: its descriptor was closed when the interpreter started."""
    if isinstance(stream, io.TextIOWrapper):
        if isinstance(_raw(stream), Stream):
            return stream
        with contextlib.suppress(OSError):
            stream.flush()
    encoding, errors = ("utf-8", "backslashreplace") if stream is None else (stream.encoding, stream.errors)
    line_buffering = descriptor == 2 or os.isatty(descriptor)
    buffer: io.BufferedWriter = io.BufferedWriter(Stream(descriptor))
    return io.TextIOWrapper(buffer, encoding=encoding, errors=errors, line_buffering=line_buffering)


def _raw(stream: TextIO | None) -> io.RawIOBase | None:
    """What a text stream writes to in the end; None if it is none of the interpreter's kind."""
    if isinstance(stream, io.TextIOWrapper) and isinstance(stream.buffer, io.BufferedWriter):
        raw: io.RawIOBase = stream.buffer.raw
        return raw
    return None
