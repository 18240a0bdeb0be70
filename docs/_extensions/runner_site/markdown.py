"""Text of docstrings and comments as Markdown."""

import re

__all__ = ["code", "fenced", "page_link", "prose", "target"]

SPECIAL = re.compile(r"([\\*_<>\[\]{}|#~$])")
SPAN = re.compile(r"(`[^`\n]+`)")
TYPED = re.compile(r"(?<![\w.-])(?:--[a-z][a-z-]*|[a-z_]+(?:\.\w+)*=[\w\[\]{},.|%:/-]*[\w\]}])")
"""What one types: a flag, or an override without spaces."""
MEANS = re.compile(rf"\bdocs/(?P<page>\w+)\.md(?P<anchor>#[\w-]+)?|{TYPED.pattern}")


def prose(text: str, *, depth: int) -> str:
    """Plain text as it stands, but with a link for docs/<page>.md, and what one types in a code span.

    Args:
        depth: how many folders below docs/ the text will be.
    """
    pieces = SPAN.split(text)
    return "".join(piece if index % 2 else _outside(piece, depth) for index, piece in enumerate(pieces))


def _outside(text: str, depth: int) -> str:
    found = []
    end = 0
    for match in MEANS.finditer(text):
        meant = (
            code(match[0]) if match["page"] is None else page_link(match["page"], match["anchor"] or "", depth=depth)
        )
        found += [SPECIAL.sub(r"\\\1", text[end : match.start()]), meant]
        end = match.end()
    return "".join([*found, SPECIAL.sub(r"\\\1", text[end:])])


def page_link(page: str, anchor: str = "", *, depth: int) -> str:
    """A link to a page in docs/, by its title."""
    return f"[]({'../' * depth}{page}.md{anchor})"


def code(text: str) -> str:
    """A code span, whatever the text has."""
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def fenced(text: str, language: str = "text") -> str:
    """A block of code."""
    return f"```{language}\n{text}\n```"


def target(name: str) -> str:
    """An anchor in front of a heading or a definition."""
    return f"({name})="
