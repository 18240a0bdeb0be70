"""Writes the pages that no person writes, below docs/, where git ignores them; a file that has not changed is kept."""

import re
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx

from runner_site import commands, errors, interface, options

__all__ = ["write"]

REFERENCE = "reference"
PROJECT = "project"
OUTSIDE = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
"""Pages that lie beside docs/, where people look for them first."""
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def write(app: Sphinx) -> None:
    """Write all of them, and remove those of an earlier build that are no longer there."""
    docs = Path(app.srcdir)
    wanted = {docs / f"{name}.md": f"{text.strip()}\n" for name, text in _pages(docs)}
    for folder in (REFERENCE, PROJECT):
        for path in (docs / folder).rglob("*.md"):
            if path not in wanted:
                path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _pages(docs: Path) -> Iterator[tuple[str, str]]:
    for name, text in (*options.pages(), *commands.pages(), *errors.pages(docs), *interface.pages(docs)):
        yield f"{REFERENCE}/{name}", text
    for name, file in OUTSIDE.items():
        yield f"{PROJECT}/{name}", LINK.sub(_from_project, (docs.parent / file).read_text(encoding="utf-8"))


def _from_project(link: re.Match[str]) -> str:
    """A link of a page beside docs/, as it is from its place in the site. Other files can be downloaded."""
    path = link[1]
    page = next((name for name, file in OUTSIDE.items() if file == path), None)
    if page is not None:
        return f"]({page}.md"
    return f"](../{path.removeprefix('docs/')}" if path.startswith("docs/") else f"](../../{path}"
