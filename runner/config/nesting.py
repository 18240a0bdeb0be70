"""Refuses YAML that is nested or repeated beyond reason, before it is built.

PyYAML builds a document by recursion in C: 100,000 opening brackets end the process with SIGSEGV. And a kilobyte of
aliases that repeat aliases stands for a document that fills the memory of whoever walks through it.
"""

from typing import Any

import yaml

__all__ = ["LOADER", "MAX_DEPTH", "TooDeepError", "TooLargeError", "check_nesting"]

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""PyYAML's safe loader, with the C parser where libyaml is available (ten times faster)."""
MAX_DEPTH = 100
MAX_NODES = 1_000_000


class TooDeepError(yaml.YAMLError):
    """Collections inside each other, more than MAX_DEPTH of them or without end."""


class TooLargeError(yaml.YAMLError):
    """More than MAX_NODES values, once each alias is replaced by what it stands for."""


def check_nesting(text: str) -> None:
    """Return if LOADER may build the document.

    Raises:
        TooDeepError: it is nested too deeply, or contains itself.
        TooLargeError: it has too many nodes once each alias is replaced by what it stands for.
        yaml.YAMLError: it is not YAML.
    """
    sizes: dict[str | None, int] = {}
    opened: list[tuple[str | None, int]] = []  # each collection that is open: its anchor, and its nodes so far
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, 1))
            if len(opened) > MAX_DEPTH:
                raise TooDeepError(f"line {_line(event)} is nested more than {MAX_DEPTH} levels deep")
            continue
        if isinstance(event, yaml.AliasEvent) and event.anchor in [anchor for anchor, _ in opened]:
            raise TooDeepError(f"line {_line(event)}: {event.anchor} contains itself")
        anchor, size = opened.pop() if isinstance(event, yaml.CollectionEndEvent) else (None, 1)
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor, 1)
        sizes[anchor] = size
        if opened:
            opened[-1] = (opened[-1][0], opened[-1][1] + size)
        if size > MAX_NODES and len(sizes) > 1:
            raise TooLargeError(f"its aliases stand for more than {MAX_NODES:,} values")


def _line(event: Any) -> int:
    """Where an event starts; PyYAML's types allow it to have no mark, which its loaders always set."""
    return int(event.start_mark.line) + 1
