"""What becomes of one key of a foreign configuration: settings of a recipe, a remark, or both."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from runner.config.read import GROUPS, MANY_GROUPS

__all__ = ["Argument", "Change", "Line", "Outcome", "Rule", "Setting", "Values", "as_text", "becomes", "shown"]

PLAIN = re.compile(r"[A-Za-z_./~][\w./~+@%-]*", re.ASCII)
"""Text that Hydra's grammar takes for text without quotes, unless it is one of WORDS."""
INTERPOLATION = re.compile(r"(\\*)\$\{")
BEFORE_QUOTE = re.compile(r"(\\+)('|$)")
"""Backslashes that Hydra's grammar would take for an escape of the quote after them."""
WORDS = re.compile(r"null|true|false|on|off|yes|no|nan|inf", re.IGNORECASE)


class Change(Enum):
    """How an override changes a key, and what stands before it in Hydra's grammar."""

    SET = ""
    """A key that an option file lists."""
    ADD = "++"
    """A key that may not be there yet."""
    REMOVE = "~"
    """A key that must go."""


@dataclass(frozen=True)
class Setting:
    """One key of a recipe and its value."""

    key: str
    value: Any = None
    """A plain value; for a group, the name of its option."""
    change: Change = field(default=Change.SET, kw_only=True)
    """How an override changes the key."""

    @property
    def is_choice(self) -> bool:
        """Whether it chooses an option of a group."""
        return self.key in GROUPS or self.key in MANY_GROUPS

    def __str__(self) -> str:
        value = "" if self.change is Change.REMOVE else f"={_in_grammar(self.value)}"
        return f"{self.change.value}{self.key}{value}"


class Outcome(NamedTuple):
    """What one key becomes."""

    settings: tuple[Setting, ...] = ()
    remark: str = ""
    """Why there is no setting, or what differs."""
    is_missing: bool = False
    """Whether something that the key asks for is not there."""


Values = Mapping[str, Any]
"""All arguments that a configuration gives, by name, without those that are null."""
Rule = Callable[[Any, Values], Outcome]
"""Translates the value of one argument beside all others. Raises ValueError if the value is wrong."""


class Argument(NamedTuple):
    """An argument as it was given."""

    key: str
    """As the person wrote it: fsdp_config.fsdp_version, --num_processes."""
    value: Any


class Line(NamedTuple):
    """An argument and what it became."""

    argument: Argument
    outcome: Outcome


def becomes(*settings: tuple[str, Any], remark: str = "", is_missing: bool = False) -> Outcome:
    """The outcome with these keys and values."""
    return Outcome(tuple(Setting(key, value) for key, value in settings), remark, is_missing)


def shown(value: Any) -> str:
    """A value as it is shown to a person: as in JSON, but text without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _in_grammar(value: Any) -> str:
    """A value in the grammar of Hydra's overrides, without spaces where possible."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_in_grammar(key)}:{_in_grammar(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_in_grammar, value)) + "]"
    if not isinstance(value, str):
        return str(value) if isinstance(value, float) else json.dumps(value)
    if PLAIN.fullmatch(value) and not WORDS.fullmatch(value):
        return value
    escaped = BEFORE_QUOTE.sub(r"\1\1\2", as_text(value)).replace("'", "\\'")
    return f"'{escaped}'"


def as_text(value: str) -> str:
    """The text with every ${ escaped: to another library it has no meaning."""
    return INTERPOLATION.sub(r"\1\1\\${", value)
