"""The runner's log: one logger, one line per event, one file per rank; rank 0 also logs to the terminal."""

import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from runner import terminal

__all__ = ["LogFile", "close", "logger", "scrub", "setup"]

logger = logging.getLogger("runner")
"""The logger that every module uses."""

_WARNINGS = logging.getLogger("py.warnings")  # receives Python warnings through logging.captureWarnings


def setup(log_file: Path, *, rank: int, console: bool) -> None:
    """Log to this rank's file. Replaces the handlers of an earlier call.

    Args:
        log_file: opened for appending, so that a resumed run continues it; its directory is created.
        rank: printed in each line of the file.
        console: also log to stderr, on rank 0 only.
    """
    close()
    log_file.parent.mkdir(parents=True, exist_ok=True)
    file = LogFile(log_file, encoding="utf-8")
    file.setFormatter(_OneLine(f"%(asctime)s | rank {rank} | %(levelname)s | %(message)s"))
    handlers: list[logging.Handler] = [file]
    if console and rank == 0:
        handlers.append(_Terminal())
    for source in (logger, _WARNINGS):
        for handler in handlers:
            source.addHandler(handler)
        source.setLevel(logging.INFO)
        # Hydra adds a stdout handler to the root logger, so propagated records would be printed twice.
        source.propagate = False
    logging.captureWarnings(True)
    # To the file only: the terminal is what was lost.
    terminal.report_losses(functools.partial(_warn, file))


def scrub(change: Callable[[str], str]) -> None:
    """Pass every line through a function before it is written, which takes secrets out of it. After `setup`."""
    for handler in logger.handlers:
        if isinstance(handler.formatter, _OneLine):
            handler.formatter.scrub = change


def close() -> None:
    """Remove and close the handlers. Does nothing if `setup` was not called."""
    for source in (logger, _WARNINGS):
        for handler in tuple(source.handlers):
            source.removeHandler(handler)
            handler.close()
        source.propagate = True
    logging.captureWarnings(False)


def _warn(handler: logging.Handler, message: str) -> None:
    handler.handle(logger.makeRecord(logger.name, logging.WARNING, "", 0, message, (), None))


class _OneLine(logging.Formatter):
    """Joins the lines of a captured warning, to which Python appends the source line that issued it."""

    scrub: Callable[[str], str] = staticmethod(str)

    def format(self, record: logging.LogRecord) -> str:
        if record.name == _WARNINGS.name:
            record = logging.makeLogRecord(
                {**record.__dict__, "msg": " ".join(record.getMessage().split()), "args": ()}
            )
        return self.scrub(super().format(record))


class LogFile(logging.FileHandler):
    """A log file that reports an error of the file system, such as a full disk, in one line and once."""

    _failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line. With `delay`, this opens the file."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's own name
        """Report an error of the file system once."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            print(f"warning: cannot write {self.baseFilename}: {error.strerror}", file=sys.stderr, flush=True)


class _Terminal(logging.Handler):
    """Writes to the current sys.stderr, which a progress bar replaces to print lines above itself."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_OneLine("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        print(prefix + self.format(record), file=sys.stderr, flush=True)
