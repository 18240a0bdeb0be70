"""Reads a file of a foreign configuration as a mapping: YAML or JSON, as data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.composition.yaml_file import FileFault, parse
from runner.config.files import JsonFile
from runner.errors import Fault, SpecError

__all__ = ["read_tree"]


def read_tree(path: Path) -> Mapping[str, Any]:
    """The content of a file.

    Raises:
        SpecError: it cannot be read, or is not a mapping of plain values.
    """
    if not path.is_file():
        raise SpecError(Fault(key="FILE", message=f"there is no file {path}. Give the path of a configuration."))
    try:
        content = (
            JsonFile(path=str(path)).read().parsed
            if path.suffix == ".json"
            else parse(path, allow_repeats=True).content
        )
    except (ValueError, FileFault) as wrong:
        raise SpecError(Fault(key="FILE", message=str(wrong), origin=str(path))) from None
    return {str(key): value for key, value in content.items()}
