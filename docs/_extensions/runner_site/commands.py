"""The page of commands: what `runner VERB --help` prints, from the verbs' own parsers."""

import argparse
import re
from collections.abc import Iterator

from runner.cli.help import OVERRIDES
from runner.cli.verb import load_verb, parser_of, summary_of, verb_names
from runner_site.markdown import code, fenced, prose, target

__all__ = ["pages"]

DEPTH = 1
HIDDEN = (argparse.SUPPRESS, "show this help message and exit")
INDENTED = re.compile(r"^ {4}")


def pages() -> Iterator[tuple[str, str]]:
    """The name and the Markdown of the page."""
    yield "commands", "\n\n".join(_page())


def _page() -> Iterator[str]:
    yield "# Commands"
    yield "`runner VERB --help` prints the same. A command ends with an [exit code](errors.md) that names the cause."
    yield fenced(OVERRIDES)
    for name in verb_names():
        verb = load_verb(name)
        parser = parser_of(name, verb, command=[])
        yield target(f"command-{name}")
        yield f"## runner {name}"
        yield f"**{prose(summary_of(verb), depth=DEPTH)}.**"
        yield fenced(parser.format_usage().removeprefix("usage: ").strip(), "bash")
        yield from _described((verb.__doc__ or "").partition("\n")[2].strip())
        yield from (_argument(action) for action in parser._actions if action.help not in HIDDEN)
        epilog = (parser.epilog or "").replace(OVERRIDES, "").strip()
        if epilog:
            yield fenced(epilog)


def _described(text: str) -> Iterator[str]:
    """The paragraphs of a docstring; indented ones are commands."""
    for paragraph in filter(None, text.split("\n\n")):
        lines = paragraph.splitlines()
        if all(map(INDENTED.match, lines)):
            yield fenced("\n".join(line[4:] for line in lines), "bash")
        else:
            yield prose(paragraph, depth=DEPTH)


def _argument(action: argparse.Action) -> str:
    """A definition: the argument as one writes it, and its help."""
    value = action.metavar if isinstance(action.metavar, str) else None
    if value is None and action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if value is None and action.nargs != 0:
        value = action.dest.upper()
    written = ", ".join(
        f"{option} {value}" if value and action.nargs != 0 else option for option in action.option_strings
    )
    shown = written or (f"[{value} ...]" if action.nargs == "*" else f"{value}")
    return f"{code(shown)}\n: {prose(' '.join((action.help or '').split()), depth=DEPTH)}"
