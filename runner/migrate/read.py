"""Reads a foreign configuration, whichever format it has."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.composition.yaml_file import Page
from runner.config.named_path import place
from runner.errors import Fault, SpecError
from runner.migrate.accelerate.config import TOP_LEVEL, accelerate_lines, arguments_in
from runner.migrate.deepspeed.read import SECTIONS, deepspeed_lines
from runner.migrate.outcome import Line
from runner.migrate.translate import Migration
from runner.migrate.tree import read_tree

__all__ = ["read_file"]


@dataclass(frozen=True)
class Format:
    """A format of configuration files."""

    name: str
    top_level: Collection[str]
    """Keys at the top of such a file."""
    lines: Callable[[Mapping[str, Any], Path], list[Line]]

    def num_known(self, content: Mapping[str, Any]) -> int:
        """How many keys of a file are of this format."""
        return len(set(content) & set(self.top_level))


def _accelerate(content: Mapping[str, Any], path: Path) -> list[Line]:
    return accelerate_lines(arguments_in(content), origin=str(path), directory=path.parent)


def _deepspeed(content: Mapping[str, Any], path: Path) -> list[Line]:
    found = deepspeed_lines(content, {}, origin=str(path))
    if found.faults:
        raise SpecError(*found.faults)
    return found.lines


FORMATS = (
    Format("a configuration of Accelerate", TOP_LEVEL, _accelerate),
    Format("a configuration of DeepSpeed", SECTIONS, _deepspeed),
)


def read_file(path: Path) -> Migration:
    """Read a configuration file; its keys say which format it has.

    Raises:
        SpecError: it cannot be read, is of no known format, or has unknown keys or wrong values.
    """
    page = read_tree(path)
    content = page.content
    best = max(FORMATS, key=lambda one: one.num_known(content))
    if not best.num_known(content):
        rule = (
            "none of its keys is one of Accelerate's or DeepSpeed's. Give the YAML of `accelerate config`, a DeepSpeed "
            "JSON, or a command line: runner import -- torchrun …"
        )
        raise SpecError(Fault(key="FILE", message=rule, origin=str(path)))
    try:
        lines = best.lines(content, path)
    except SpecError as wrong:
        raise SpecError(*(_with_line(fault, page, path) for fault in wrong.faults)) from None
    return Migration(f"{path}, {best.name}", lines)


def _with_line(fault: Fault, page: Page, path: Path) -> Fault:
    """The fault, with the line of its key if that stands in this file."""
    return replace(fault, origin=place(path, page.line(*fault.key.split(".")))) if fault.origin == str(path) else fault
