"""The index of errors: each class with its exit code, what happened, what helps, and the messages it comes with.

What happened and what helps are the table of docs/exit_codes.md; the rest is runner/errors.py. A class that one of the
two lacks is an error of the build.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from runner import errors
from runner.errors import RunFailed, RunnerError
from runner_site.markdown import target
from runner_site.messages import messages

__all__ = ["pages"]

ROW = re.compile(r"^\| (\d+) \| (`.*?`)? ?\| (.+?) \| (.*?) ?\|$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)")


def pages(docs: Path) -> Iterator[tuple[str, str]]:
    """The name and the Markdown of the page.

    Args:
        docs: the folder with the page of exit codes.
    """
    yield "errors", "\n\n".join(_page((docs / "exit_codes.md").read_text()))


def _page(exit_codes: str) -> Iterator[str]:
    table = _table(exit_codes)
    said = messages()
    yield "# Errors"
    yield (
        "Every error that the runner raises on purpose, with the [exit code](../exit_codes.md) of the command. "
        "In Python, all of them are in `runner.errors`. The lists have the messages that the source has as one text; "
        "`…` stands for a value."
    )
    for kind in _kinds():
        code, happened, helps = table[kind.__name__]
        if code != kind("").exit_code:
            raise ValueError(f"docs/exit_codes.md has {code} for {kind.__name__}, runner/errors.py {kind.exit_code}.")
        yield target(f"error-{kind.__name__.lower()}")
        yield f"## {kind.__name__}"
        yield _described(kind)
        yield f"Exit code\n: {code}{', if the cause is not known' if kind is RunFailed else ''}"
        yield f"What happened\n: {_capital(happened)}."
        yield f"What helps\n: {_capital(helps)}."
        found = said.get(kind.__name__, [])
        if found:
            yield f"<details><summary>{len(found)} of its messages</summary>"
            yield "\n".join(f"- {one}" for one in found)
            yield "</details>"
    yield "## Fault"
    yield "```{eval-rst}\n.. autoclass:: runner.errors.Fault\n   :members:\n   :undoc-members:\n```"


def _described(kind: type[RunnerError]) -> str:
    """The class as Sphinx knows it, so that others refer to it, with the first paragraph of its docstring."""
    text = " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())
    name = f"{kind.__module__}.{kind.__name__}"
    return f"```{{eval-rst}}\n.. py:exception:: {name}\n   :no-contents-entry:\n\n   {text}\n```"


def _table(text: str) -> Mapping[str, tuple[int, str, str]]:
    """The rows of the page of exit codes, by class."""
    found = {}
    for code, names, happened, helps in ROW.findall(text):
        for name in re.findall(r"`(\w+)`", names):
            found[name] = (int(code), LINK.sub("](../", happened), LINK.sub("](../", helps))
    return found


def _kinds() -> list[type[RunnerError]]:
    """The root, and every class below it, in the order of their exit codes."""
    defined = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RunnerError)]
    return sorted(defined, key=lambda kind: (kind.exit_code, kind is RunFailed))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
