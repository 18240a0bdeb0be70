"""Reads a file of a foreign configuration as a mapping: YAML or JSON, as data."""

from dataclasses import replace
from pathlib import Path

from runner.composition.yaml_file import FileFault, Page, parse
from runner.config.files import JsonFile
from runner.errors import Fault, SpecError

__all__ = ["read_tree"]


def read_tree(path: Path) -> Page:
    """The content of a file; of one in YAML, also the lines.

    Raises:
        SpecError: it cannot be read, or is not a mapping of plain values.
    """
    if not path.is_file():
        raise SpecError(Fault(key="FILE", message=f"there is no file {path}. Give the path of a configuration."))
    try:
        if path.suffix == ".json":
            page = Page(content=dict(JsonFile(path=str(path)).read().parsed), lines=(), root=None)
        else:
            page = parse(path, allow_repeats=True)
    except (ValueError, FileFault) as wrong:
        raise SpecError(Fault(key="FILE", message=str(wrong), origin=str(path))) from None
    return replace(page, content={str(key): value for key, value in page.content.items()})
