"""Read one YAML file strictly: UTF-8, no duplicate keys, plain values only. Faults say the line and what to do."""

from pathlib import Path
from typing import Any

import yaml

from runner.config.nesting import LOADER, MAX_DEPTH, TooDeepError, TooLargeError, check_nesting

__all__ = ["FileFault", "parse", "yaml_problem"]

PLAIN = "tag:yaml.org,2002:"
TAGS = frozenset(PLAIN + name for name in ("null", "bool", "int", "float", "str", "seq", "map", "timestamp", "merge"))
MAX_VALUES = 100_000
"""Values of one file with its aliases expanded. A file of 1 kB can ask for 10^9 of them."""
ALIASES = "with its aliases (*name) expanded. Write fewer, or none inside themselves."
TOO_DEEP = f"values are nested more than {MAX_DEPTH} deep, {ALIASES}"
TOO_LARGE = f"the file has more than {MAX_VALUES} values, {ALIASES}"


class FileFault(Exception):
    """What is wrong with a file. The message says the line, if there is one, the rule and the way out."""


def parse(path: Path) -> dict[Any, Any]:
    """The content of a config file; an empty file is an empty mapping.

    Raises:
        FileFault: it cannot be read, or is not a mapping of plain YAML.
    """
    text = _text(path)
    try:
        check_nesting(text)
        loader = LOADER(text)
        root = loader.get_single_node()
        if root is not None:
            _check(root)
        content = None if root is None else loader.construct_document(root)
    except TooDeepError:
        raise FileFault(TOO_DEEP) from None
    except TooLargeError:
        raise FileFault(TOO_LARGE) from None
    except yaml.YAMLError as error:
        raise FileFault(yaml_problem(error, text)) from None
    except ValueError as error:  # a date or number that does not exist: 2020-13-99
        raise FileFault(f"a value cannot be read: {error}. Quote it if it is text.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise FileFault(f"the file holds a {_kind(content)}, but must hold a mapping of keys to values, key: value")
    return content


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
        raise FileFault(f"line {line} is not UTF-8 (byte 0x{byte:02x}). Save the file as UTF-8.") from None


def _check(root: yaml.Node) -> None:
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
            raise FileFault(
                f"{_line(node)} has a value tagged {tag}. Write a plain value: text, number, list or mapping."
            )
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            waiting += [(value, depth + 1) for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(item, depth + 1) for item in node.value]


def _check_keys(node: yaml.MappingNode) -> None:
    first: dict[str, yaml.Node] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag not in TAGS:
            raise FileFault(f"{_line(key)} has a key that is a list or a mapping. Write a name, and quote braces.")
        if key.value in first:
            where = f"first in {_line(first[key.value])}"
            raise FileFault(f"{_line(key)} gives the key {key.value} again ({where}). Keep one of the two.")
        first[key.value] = key


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


def _kind(content: object) -> str:
    return "list" if isinstance(content, list) else f"single value, {content!r},"
