"""The command `runner`: runs the verb that it is given and turns what that raises into a message and an exit code.

Help, version and the completion of verbs and recipes import neither torch nor Hydra.
"""

import os
import sys
from collections.abc import Sequence

from runner import __version__
from runner.cli.help import overview
from runner.cli.verb import load_verb, own_words, parser_of, verb_names
from runner.config.nearest import did_you_mean
from runner.errors import Interrupted, RunnerError
from runner.runs.interpreter import begin, leave

__all__ = ["main", "run"]

HELP = ("-h", "--help")
COMPLETION = ("-sc", "--shell-completion")


def run() -> None:
    """Run the console script, and exit."""
    begin()
    leave(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code, which is that of the error: see runner/errors.py."""
    try:
        code = _dispatch(list(argv))
        sys.stdout.flush()  # what a pipe has not taken yet, it may refuse here as well
        return code
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
    if any(word in COMPLETION for word in own_words(argv)):
        from runner.cli import completion

        return completion.main(argv)
    if not argv or argv[0] in (*HELP, "help"):
        print(overview())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"runner {__version__}")
        return 0
    name, *words = argv
    if name not in verb_names():
        print(f"there is no command {name!r}.{did_you_mean(name, verb_names())}\n\n{overview()}", file=sys.stderr)
        return 2
    verb = load_verb(name)
    parser = parser_of(name, verb, command=["runner", *argv])
    if any(word in HELP for word in own_words(words)):
        print(parser.format_help(), end="")
        return 0
    return verb.main(parser.parse_words(words))
