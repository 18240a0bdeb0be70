"""The command `runner`: picks the verb and turns what it raises into a message and an exit code.

Only the verb that is called is imported: help, version and completion load neither torch nor Hydra before they need it.
"""

import atexit
import gc
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from runner import __version__
from runner.cli import help as pages
from runner.config.nearest import did_you_mean
from runner.errors import Interrupted, RunnerError

__all__ = ["main", "run"]

VERBS: Mapping[str, Callable[[], str]] = {
    "train": pages.train,
    "resume": pages.resume,
    "check": pages.check,
    "recipes": pages.recipes,
    "export": pages.export,
}
"""Each verb with its help page; its code is runner/cli/<verb>.py."""
COMPLETION = ("-sc", "--shell-completion")


def run() -> None:
    """The console script. Leaves by os._exit: tearing down an interpreter with torch in it takes 0.4 s."""
    # Imports make a million objects and little garbage: collecting every 700 objects costs 0.3 s of a start, never
    # collecting 7 MB.
    gc.set_threshold(10_000)
    code = main(sys.argv[1:])
    atexit._run_exitfuncs()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code: 0 done, 130 interrupted, or that of what it raised."""
    try:
        return _dispatch(list(argv))
    except RunnerError as error:
        print(f"{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails again
        return 1


def _dispatch(argv: list[str]) -> int:
    if any(word in COMPLETION for word in argv):
        return _verb("completion")(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(pages.overview())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"runner {__version__}")
        return 0
    if argv[0] not in VERBS:
        print(
            f"there is no command {argv[0]!r}.{did_you_mean(argv[0], VERBS)}\n\n{pages.overview()}",
            file=sys.stderr,
        )
        return 2
    if any(word in ("-h", "--help") for word in argv[1:]):
        print(VERBS[argv[0]]())
        return 0
    return _verb(argv[0])(argv[1:])


def _verb(name: str) -> Callable[[list[str]], int]:
    verb: Callable[[list[str]], int] = import_module(f"runner.cli.{name}").main
    return verb
