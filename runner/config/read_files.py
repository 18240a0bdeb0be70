"""Reads the files that parts name, once, before launch."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from runner.config.files import JsonFile
from runner.config.sections import is_flattened
from runner.config.unknown import UNKNOWN
from runner.errors import Fault

__all__ = ["ReadFiles", "read_files", "read_files_of"]


class ReadFiles(NamedTuple):
    """A part whose files have been read."""

    part: Any
    node: Mapping[str, Any]
    """The part's node with the content of each file, as it is frozen."""
    faults: list[Fault]


def read_files(part: Any, node: Mapping[str, Any], *, key: str) -> ReadFiles:
    """Read the files that the fields of a part, or of a section inside it, name and that have not been read yet.

    Args:
        node: what the part was built from.
        key: the part's own, for the faults.
    """
    changed: dict[str, Any] = {}
    faults: list[Fault] = []
    for field in (one for one in dataclasses.fields(part) if one.init):
        name, value = field.name, vars(part)[field.name]
        if isinstance(value, JsonFile) and value.content is None:
            try:
                changed[name] = value.read()
            except ValueError as error:
                faults.append(Fault(key=f"{key}.{name}", message=str(error)))
                changed[name] = dataclasses.replace(value, content={})  # so that everything else can still be checked
            node = {**node, name: changed[name].frozen()}
        elif dataclasses.is_dataclass(value) and not isinstance(value, JsonFile):
            if is_flattened(field):
                inner = read_files(value, node, key=key)
                node = inner.node
            else:
                inner = read_files(value, node.get(name, {}), key=f"{key}.{name}")
                node = node if inner.part is value else {**node, name: inner.node}
            changed[name] = inner.part
            faults += inner.faults
    is_changed = any(vars(part)[name] is not value for name, value in changed.items())
    return ReadFiles(dataclasses.replace(part, **changed) if is_changed else part, node, faults)


def read_files_of(keys: Iterable[str], parts: dict[str, Any], nodes: dict[str, Any], *, above: str = "") -> list[Fault]:
    """Replace parts, and the nodes that they were built from, by those whose files have been read.

    Args:
        above: what stands before the keys, for the faults.
    """
    found: list[Fault] = []
    for key in keys:
        if parts[key] is not UNKNOWN:
            parts[key], nodes[key], faults = read_files(parts[key], nodes[key], key=f"{above}{key}")
            found += faults
    return found
