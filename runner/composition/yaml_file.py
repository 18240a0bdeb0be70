"""Read one YAML file strictly: UTF-8, no duplicate keys, plain values only. Faults say the line and what to do."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from runner.config.named_path import place
from runner.config.nesting import LOADER, MAX_DEPTH, TooDeepError, TooLargeError, check_nesting
from runner.errors import Fault

__all__ = ["FileFault", "Page", "parse", "yaml_problem"]

PLAIN = "tag:yaml.org,2002:"
TAGS = frozenset(PLAIN + name for name in ("null", "bool", "int", "float", "str", "seq", "map", "timestamp", "merge"))
MAX_VALUES = 100_000
"""Values of one file with its aliases expanded. A file of 1 kB can ask for 10^9 of them."""
ALIASES = "with its aliases (*name) expanded. Write fewer, or none inside themselves."
TOO_DEEP = f"values are nested more than {MAX_DEPTH} deep, {ALIASES}"
TOO_LARGE = f"the file has more than {MAX_VALUES} values, {ALIASES}"
LINE_END = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")
"""What libyaml counts as the end of a line."""
COMMENT = re.compile(r"\s+#(.*)")
BLOCK_STYLES = ("|", ">")
"""Of text that continues on the following lines."""


class FileFault(Exception):
    """What is wrong with a file. The message says the line, if there is one, the rule and the way out."""

    def __init__(self, message: str, *, line: int | None = None) -> None:
        self.line = line
        super().__init__(message)

    def fault(self, key: str, path: Path) -> Fault:
        """The same as a fault, with its place in the file."""
        return Fault(key=key, message=str(self), origin=place(path, self.line))


@dataclass(frozen=True, kw_only=True)
class Page:
    """The content of a config file, and where in the file each value is."""

    content: dict[Any, Any]
    """Empty if the file is."""
    lines: Sequence[str]
    root: yaml.Node | None

    def line(self, *keys: str | int) -> int | None:
        """The line, from 1, on which the value at a path of keys and list indices is given; None = it is not."""
        found = self._find(keys)
        return None if found is None else found[0].start_mark.line + 1

    def comment(self, *keys: str | int) -> str:
        """The comment beside a value: after it, or after its key if the value continues on further lines; or empty."""
        found = self._find(keys)
        if found is None:
            return ""
        key, value = found
        scalar = isinstance(value, yaml.ScalarNode)
        block = value.style in BLOCK_STYLES if scalar else not value.flow_style  # type: ignore[attr-defined]
        beside_key = block or value.start_mark.index == value.end_mark.index
        end = key.end_mark if beside_key else value.end_mark
        rest = self.lines[end.line][end.column :]
        comment = COMMENT.search(rest) if beside_key else COMMENT.match(rest)
        return comment[1].strip() if comment else ""

    def _find(self, keys: Sequence[str | int]) -> tuple[yaml.Node, yaml.Node] | None:
        """The nodes of the last key (of an item of a list: the item itself) and of its value."""
        found = None if self.root is None else (self.root, self.root)
        for key in keys:
            found = None if found is None else _children(found[1]).get(key)
        return found


def _children(node: yaml.Node) -> dict[str | int, tuple[yaml.Node, yaml.Node]]:
    """The nodes of the keys and values of a mapping, or of the items of a list, by key or index."""
    if isinstance(node, yaml.MappingNode):  # merged keys (<<) come first; those of the mapping itself replace them
        return {key.value: (key, value) for key, value in node.value}
    items = node.value if isinstance(node, yaml.SequenceNode) else ()
    return {index: (item, item) for index, item in enumerate(items)}


def parse(path: Path, *, allow_repeats: bool = False) -> Page:
    """The content of a config file.

    Args:
        allow_repeats: accept a key that is given again with the same single value, as files of other programs may.

    Raises:
        FileFault: it cannot be read, or is not a mapping of plain YAML.
    """
    text = _text(path)
    try:
        check_nesting(text)
        loader = LOADER(text)
        root = loader.get_single_node()
        if root is not None:
            _check(root, allow_repeats=allow_repeats)
        content = None if root is None else loader.construct_document(root)
    except TooDeepError:
        raise FileFault(TOO_DEEP) from None
    except TooLargeError:
        raise FileFault(TOO_LARGE) from None
    except yaml.YAMLError as error:
        raise FileFault(yaml_problem(error, text), line=_line_of_error(error)) from None
    except ValueError as error:  # a date or number that does not exist: 2020-13-99
        raise FileFault(f"a value cannot be read: {error}. Quote it if it is text.") from None
    if content is not None and not isinstance(content, dict):
        raise FileFault(f"the file holds a {_kind(content)}, but must hold a mapping of keys to values, key: value")
    return Page(content=content or {}, lines=LINE_END.split(text), root=root)


def yaml_problem(error: yaml.YAMLError, text: str = "") -> str:
    """A message about YAML that cannot be parsed.

    Args:
        text: of the file, to look at the character at which the error occurred.
    """
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"the file is not YAML: {' '.join(str(error).split())}. Remove what is no text."
    line, column = error.problem_mark.line, error.problem_mark.column
    lines = text.split("\n")
    if line < len(lines) and "\t" in lines[line][: column + 1]:
        return f"line {line + 1} has a tab where YAML allows only spaces. Replace the tab by spaces."
    reason = " ".join(part for part in (error.context, error.problem) if part)
    return (
        f"line {line + 1}, column {column + 1} is not YAML: {reason}. Correct that line or the one before it; text "
        "that contains a colon, a comma or brackets may need quotes."
    )


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileFault(f"the file cannot be read: {error.strerror}. Allow this user to read it.") from None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = content[error.start]
        raise FileFault(f"line {line} is not UTF-8 (byte 0x{byte:02x}). Save the file as UTF-8.", line=line) from None


def _check(root: yaml.Node, *, allow_repeats: bool) -> None:
    """Walk the nodes as they are after aliases are expanded, into which Hydra descends recursively.

    Raises:
        FileFault: a key is given twice, a value is not plain, or aliases make the file too large.
    """
    waiting: list[tuple[yaml.Node, int]] = [(root, 1)]
    num_values = 0
    while waiting:
        node, depth = waiting.pop()
        num_values += 1
        if num_values > MAX_VALUES or depth > MAX_DEPTH:
            raise FileFault(TOO_DEEP if depth > MAX_DEPTH else TOO_LARGE)
        if node.tag not in TAGS:
            tag = f"!!{node.tag.removeprefix(PLAIN)}" if node.tag.startswith(PLAIN) else node.tag
            rule = f"has a value tagged {tag}. Write a plain value: text, number, list or mapping."
            raise FileFault(f"line {_line(node)} {rule}", line=_line(node))
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, allow_repeats=allow_repeats)
            waiting += [(value, depth + 1) for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(item, depth + 1) for item in node.value]


def _check_keys(node: yaml.MappingNode, *, allow_repeats: bool) -> None:
    first: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag not in TAGS:
            rule = "has a key that is a list or a mapping. Write a name, and quote braces."
            raise FileFault(f"line {_line(key)} {rule}", line=_line(key))
        earlier, said = first.setdefault(key.value, (key, value))
        if earlier is not key and not (allow_repeats and _is_same(said, value)):
            rule = f"gives the key {key.value} again (first in line {_line(earlier)}). Keep one of the two."
            raise FileFault(f"line {_line(key)} {rule}", line=_line(key))


def _is_same(one: yaml.Node, other: yaml.Node) -> bool:
    """Whether two nodes are the same single value."""
    return isinstance(one, yaml.ScalarNode) and (one.tag, one.value) == (other.tag, other.value)


def _line(node: yaml.Node) -> int:
    line: int = node.start_mark.line + 1
    return line


def _line_of_error(error: yaml.YAMLError) -> int | None:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return None if mark is None else mark.line + 1


def _kind(content: object) -> str:
    return "list" if isinstance(content, list) else f"single value, {content!r},"
