"""Finds verbs by listing the folder verbs/; what a verb's module declares becomes its help page and its parser."""

import argparse
import functools
import pkgutil
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn, Protocol, cast

from runner.cli import verbs
from runner.errors import Fault, SpecError

__all__ = ["Parser", "Verb", "load_verb", "parser_of", "summary_of", "verb_names"]

HELP_COLUMN = 28


class Verb(Protocol):
    """What the module of a verb has, besides a docstring: its first line is what `runner --help` says of the verb."""

    USAGE: str
    """What follows the verb on a command line, without options: RECIPE [OVERRIDE ...]."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments of the verb, each with its help."""
        ...

    def main(self, arguments: argparse.Namespace) -> int:
        """Run the verb and return its exit code.

        Args:
            arguments: those declared, and `command`: the command line as a list of words.
        """
        ...


class Parser(argparse.ArgumentParser):
    """Raises instead of exiting the process."""

    def error(self, message: str) -> NoReturn:
        """Raise a SpecError: a command line that cannot be parsed is a wrong declaration."""
        raise SpecError(Fault(key="command line", message=f"{message}. See: {self.prog} --help"))


def verb_names() -> list[str]:
    """The names of all verbs, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(verbs.__path__))


def load_verb(name: str) -> Verb:
    """Import the module of a verb."""
    return cast("Verb", import_module(f"{verbs.__name__}.{name}"))


def summary_of(verb: Verb) -> str:
    """The first line of the verb's docstring, without the full stop."""
    return (verb.__doc__ or "").partition("\n")[0].rstrip(".")


def parser_of(name: str, verb: Verb, *, command: Sequence[str]) -> Parser:
    """The parser of a verb; its `format_help` is the verb's help page."""
    parser = Parser(
        prog=f"runner {name}",
        usage=f"runner {name} {verb.USAGE}".rstrip(),
        description=verb.__doc__,
        formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=HELP_COLUMN),
        allow_abbrev=False,
    )
    parser.set_defaults(command=list(command))
    verb.add_arguments(parser)
    return parser
