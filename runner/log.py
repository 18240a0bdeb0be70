"""The runner's log: one logger, one line an event, a file for each rank; rank 0 speaks to the terminal too."""

import logging
import sys
from pathlib import Path

__all__ = ["close", "logger", "setup"]

logger = logging.getLogger("runner")
"""Every module logs here."""

_CAPTURED = logging.getLogger("py.warnings")  # where logging.captureWarnings sends what Python warns of


def setup(log_file: Path, *, rank: int, console: bool) -> None:
    """Log to this rank's file, in place of where the log went before.

    Args:
        log_file: appended to, so that an attempt that resumes follows the one before; its directory is made.
        rank: names the rank in the file.
        console: show rank 0's events on stderr too; other ranks never speak there.
    """
    close()
    log_file.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(log_file, encoding="utf-8")
    file.setFormatter(_OneLine(f"%(asctime)s | rank {rank} | %(levelname)s | %(message)s"))
    handlers: list[logging.Handler] = [file]
    if console and rank == 0:
        handlers.append(_Terminal())
    for source in (logger, _CAPTURED):
        for handler in handlers:
            source.addHandler(handler)
        source.setLevel(logging.INFO)
        # Hydra gives the root logger a handler on stdout: what reached it would be said twice.
        source.propagate = False
    logging.captureWarnings(True)


def close() -> None:
    """Let go of the file and the terminal. A log that was never set up is left as it is."""
    for source in (logger, _CAPTURED):
        for handler in tuple(source.handlers):
            source.removeHandler(handler)
            handler.close()
        source.propagate = True
    logging.captureWarnings(False)


class _OneLine(logging.Formatter):
    """Puts a captured warning on one line: Python adds the line of source that warned, below it."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == _CAPTURED.name:
            record = logging.makeLogRecord(
                {**record.__dict__, "msg": " ".join(record.getMessage().split()), "args": ()}
            )
        return super().format(record)


class _Terminal(logging.Handler):
    """Writes to what sys.stderr is at that moment: a progress bar stands in for it and lifts lines above itself."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_OneLine("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        print(prefix + self.format(record), file=sys.stderr, flush=True)
