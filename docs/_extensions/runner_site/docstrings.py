"""Docstrings for autodoc: their sections (Args, Returns, Raises), and the names that types are written with."""

import ast
import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config
from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.transforms.post_transforms import SphinxPostTransform

from runner import protocols

__all__ = ["connect"]

OTHERS = ("runner.api", "runner.losses", "runner.model.experts", "runner.runs.record")
SECTIONS = Config(napoleon_use_rtype=False)
PLAIN = ("attribute", "data", "property")
"""What has a docstring without sections: napoleon itself would take what is before a colon for a type."""

HEADINGS = ("Args:", "Returns:", "Yields:", "Raises:")


def connect(app: Sphinx) -> None:
    """Have autodoc read docstrings as they are written here."""
    for name in (*OTHERS, *(f"{protocols.__name__}.{one.name}" for one in pkgutil.iter_modules(protocols.__path__))):
        _import_names_of_types(import_module(name))
    app.connect("autodoc-process-docstring", _read_sections)
    app.connect("autodoc-process-signature", _constructor)
    app.add_post_transform(Dashes)


class Dashes(SphinxPostTransform):
    """Makes the two hyphens that Sphinx writes between an argument and its meaning a dash."""

    default_priority = 400

    def run(self, **kwargs: object) -> None:
        """Replace them."""
        for text in list(self.document.findall(nodes.Text)):
            if text == " -- ":
                text.parent.replace(text, nodes.Text(" – "))


def _constructor(
    app: Sphinx, what: str, name: str, obj: Any, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """A protocol is not called; and what is no expression, such as the default <factory>, would not be parsed."""
    return (
        (None, None) if what == "class" and "_is_protocol" in vars(obj) and obj._is_protocol else (signature, returns)
    )


def _import_names_of_types(module: ModuleType) -> None:
    """Run a module's imports under TYPE_CHECKING, so that Sphinx can resolve and link its types."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            exec(compile(ast.Module(node.body, []), str(module.__file__), "exec"), vars(module))


def _read_sections(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = _with_literal_blocks(lines)
    if what not in PLAIN:
        lines[:] = GoogleDocstring(lines, SECTIONS, app, what, name, obj, options).lines()  # type: ignore[arg-type]


def _with_literal_blocks(lines: list[str]) -> Iterator[str]:
    """The lines of a docstring, in which an indented paragraph below no heading is shown as it stands."""
    above, before, inside = "", "", False
    for line in lines:
        if line and not line.startswith("    "):
            above, inside = line, False
        elif line and not before and not inside and above not in HEADINGS:
            inside = True
            yield from ("::", "")
        yield line
        before = line
