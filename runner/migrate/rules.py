"""What the tables of the formats are made of: rules for values of a kind, and conversions of single values."""

from collections.abc import Callable, Mapping
from typing import Any

from runner.config.nearest import did_you_mean
from runner.migrate.outcome import Change, Outcome, Rule, Setting, Values, becomes

__all__ = [
    "adds",
    "as_is",
    "chooses",
    "if_on",
    "is_on",
    "limit",
    "missing",
    "missing_unless",
    "names",
    "needless",
    "number",
    "only_if",
    "sets",
    "size",
    "text",
    "whole",
    "yes_no",
]

YES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def as_is(value: Any) -> Any:
    """The value itself."""
    return value


def text(value: Any) -> str:
    """A single value as text.

    Raises:
        ValueError: it is a list or a mapping.
    """
    if isinstance(value, (list, Mapping)):
        raise ValueError("must be text.")
    return str(value)


def number(value: Any) -> float | int:
    """A number; "2e8" too.

    Raises:
        ValueError: it is none.
    """
    try:
        found = float(str(value)) if not isinstance(value, bool) else None
    except ValueError:
        found = None
    if found is None or found != found or abs(found) == float("inf"):
        raise ValueError("must be a number.")
    return value if isinstance(value, int) else found


def whole(value: Any) -> int:
    """A whole number; 2e8 and "2e8" too.

    Raises:
        ValueError: it is none.
    """
    try:
        found = number(value)
    except ValueError:
        raise ValueError("must be a whole number.") from None
    if found != int(found):
        raise ValueError("must be a whole number.")
    return int(found)


def yes_no(value: Any) -> bool:
    """A truth value, also as a word: true, "yes", "False".

    Raises:
        ValueError: it is none.
    """
    found = YES.get(str(value).lower())
    if found is None:
        raise ValueError("must be true or false.")
    return found


def is_on(values: Values, name: str, *, default: bool = False) -> bool:
    """Whether an argument is true; the default if it is not given or no truth value, which its own rule tells."""
    try:
        return yes_no(values.get(name, default))
    except ValueError:
        return default


def size(values: Values, name: str, default: int = 1) -> int:
    """A whole number from 1 on; the default if it is not given or no such number, which its own rule tells."""
    try:
        found = whole(values.get(name, default))
    except ValueError:
        return default
    return found if found >= 1 else default


def names(value: Any) -> list[str]:
    """Names in a list, or in one text with commas between them."""
    parts = value if isinstance(value, list) else text(value).split(",")
    return [text(part).strip() for part in parts if text(part).strip()]


def needless(remark: str, convert: Callable[[Any], Any] = as_is) -> Rule:
    """No key is needed, whatever the value that `convert` accepts."""

    def rule(value: Any, values: Values) -> Outcome:
        convert(value)
        return Outcome(remark=remark)

    return rule


def missing(remark: str) -> Rule:
    """What the key asks for is not there."""
    return lambda value, values: Outcome(remark=remark, is_missing=True)


def missing_unless(default: Any, remark: str, *, convert: Callable[[Any], Any] = as_is) -> Rule:
    """Any value but the default asks for something that is not there."""

    def rule(value: Any, values: Values) -> Outcome:
        is_default = convert(value) == default
        return Outcome(remark="off, as here" if is_default else remark, is_missing=not is_default)

    return rule


def sets(key: str, convert: Callable[[Any], Any] = as_is, *, remark: str = "") -> Rule:
    """The value, once converted, is that of a key here."""
    return lambda value, values: becomes((key, convert(value)), remark=remark)


def limit(key: str) -> Rule:
    """A number of which 0 means off, which is null here."""
    return lambda value, values: becomes((key, number(value) or None))


def adds(key: str, convert: Callable[[Any], Any] = as_is, *, remark: str = "") -> Rule:
    """Like `sets`, for a key that no option file lists."""
    return lambda value, values: Outcome((Setting(key, convert(value), change=Change.ADD),), remark)


def if_on(outcome: Outcome, off: Outcome | None = None) -> Rule:
    """One outcome for true, another for false."""
    other = Outcome(remark="off, as here") if off is None else off
    return lambda value, values: outcome if yes_no(value) else other


def chooses(choices: Mapping[str, Outcome], *, numbered: bool = False) -> Rule:
    """An outcome for each of the known values, whose case does not matter.

    Args:
        choices: by value in capitals.
        numbered: whether old files give the number of a choice, from 1, in its place.
    """

    def rule(value: Any, values: Values) -> Outcome:
        word = str(value).upper()
        if numbered and word.isdecimal() and 0 < int(word) <= len(choices):
            return list(choices.values())[int(word) - 1]
        if word not in choices:
            raise ValueError(f"is not one of {', '.join(choices)}.{did_you_mean(word, choices)}")
        return choices[word]

    return rule


def only_if(condition: Callable[[Values], bool], when: str, rules: Mapping[str, Rule]) -> dict[str, Rule]:
    """The same rules, but where the condition does not hold their arguments have no effect, as in the original.

    Args:
        when: what must be given so that they have: distributed_type: FSDP.
    """

    def conditional(rule: Rule) -> Rule:
        no_effect = Outcome(remark=f"has no effect without {when}")
        return lambda value, values: rule(value, values) if condition(values) else no_effect

    return {name: conditional(rule) for name, rule in rules.items()}
