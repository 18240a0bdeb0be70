"""Finds verbs by listing the folder verbs/; what a verb's module declares becomes its help page and its parser."""

import argparse
import functools
import pkgutil
from collections.abc import Sequence
from importlib import import_module
from keyword import iskeyword
from typing import NoReturn, Protocol, cast

from runner.cli import verbs
from runner.errors import Fault, SpecError

__all__ = ["FOREIGN", "Parser", "Verb", "load_verb", "own_words", "parser_of", "summary_of", "verb_names"]

HELP_COLUMN = 28
FOREIGN = "foreign"
"""A verb that declares a default for this takes the words after `--` as a list, under this name: the command line of
another program, of which nothing is parsed here."""


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

    def parse_words(self, words: list[str]) -> argparse.Namespace:
        """Parse the words after the verb.

        Raises:
            SpecError: they cannot be parsed.
        """
        own = own_words(words) if self.get_default(FOREIGN) is not None else words
        found = self.parse_intermixed_args(own)
        if own is not words:
            vars(found)[FOREIGN] = words[len(own) + 1 :]
        return found


def own_words(words: list[str]) -> list[str]:
    """The words before `--`, which are for the runner itself."""
    return words[: words.index("--")] if "--" in words else words


def verb_names() -> list[str]:
    """The names of all verbs, without importing them. A module whose name would be a keyword ends in an underscore."""
    return sorted(module.name.rstrip("_") for module in pkgutil.iter_modules(verbs.__path__))


def load_verb(name: str) -> Verb:
    """Import the module of a verb."""
    module = f"{name}_" if iskeyword(name) else name
    return cast("Verb", import_module(f"{verbs.__name__}.{module}"))


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
