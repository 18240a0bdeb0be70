"""What `runner explain` prints: a block of lines for each value, or JSON."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from runner.composition.explain import Explanation
from runner.composition.origins import COMMAND_LINE, Setting

__all__ = ["print_explanations", "to_json"]

LABEL_WIDTH = 12


def print_explanations(explanations: Sequence[Explanation]) -> None:
    """Print each value with what is known of it; in colour if stdout is a terminal that may have it."""
    text = Text()
    for explanation in explanations:
        text.append(_printable(explanation.key), "bold")
        text.append(" = ")
        text.append(_written(explanation.value), "cyan")
        text.append("\n")
        for label, line in _lines(explanation):
            text.append(f"    {label:<{LABEL_WIDTH}}", "dim")
            text.append(f"{_printable(line)}\n")
    Console(highlight=False).print(text, end="", soft_wrap=True)


def to_json(explanations: Sequence[Explanation]) -> str:
    """The same as a list of objects, one for each value."""
    return json.dumps([_fields(one) for one in explanations], indent=2, default=str)


def _lines(explanation: Explanation) -> Iterator[tuple[str, str]]:
    """The label of each line, and the line; an empty label continues the line before."""
    known, settings = explanation.known, explanation.settings
    if settings:
        yield "chosen by" if explanation.is_group else "set by", _place(settings[-1])
    if settings and _refers(settings[-1].value):
        yield "written", _written(settings[-1].value)
    for index, replaced in enumerate(settings[-2::-1]):
        yield "" if index else "instead of", f"{_written(_of(explanation, replaced))}, {_place(replaced)}"
    if known.type:
        yield "type", known.type
    if known.rule:
        yield "rule", known.rule
    if explanation.is_group:
        yield "choices", ", ".join(known.choices)
    for index, (choice, meaning) in enumerate((one, text) for one, text in known.choices.items() if text):
        yield "" if index else "choices", f"{choice}: {meaning}"
    if known.meaning:
        yield "meaning", known.meaning


def _fields(explanation: Explanation) -> dict[str, Any]:
    known = explanation.known
    set_by = explanation.settings[-1] if explanation.settings else None
    choices = list(known.choices) if explanation.is_group or not any(known.choices.values()) else dict(known.choices)
    return {
        "key": explanation.key,
        "option" if explanation.is_group else "value": explanation.value,
        "set_by": set_by and _place_fields(explanation, set_by),
        "instead_of": [_place_fields(explanation, one) for one in explanation.settings[-2::-1]],
        **({} if explanation.is_group else {"type": known.type or None, "rule": known.rule or None}),
        "choices": choices or None,
        "meaning": known.meaning or None,
    }


def _place_fields(explanation: Explanation, setting: Setting) -> dict[str, Any]:
    value = {"option" if explanation.is_group else "value": _of(explanation, setting)}
    if setting.path is None:
        return {"override": setting.override, **value}
    return {"file": str(setting.path), "line": setting.line, **value}


def _of(explanation: Explanation, setting: Setting) -> Any:
    """The value in one place; where a group has one option, that option."""
    value = setting.value
    one = explanation.is_group and isinstance(value, list) and not isinstance(explanation.value, list)
    return value[0] if one and len(value) == 1 else value


def _place(setting: Setting) -> str:
    if setting.path is None:
        return f"{COMMAND_LINE}: {setting.override}"
    return setting.origin


def _refers(value: Any) -> bool:
    """Whether a value as it is written has an interpolation."""
    return "${" in str(value)


def _written(value: Any) -> str:
    """A value as YAML writes it, on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return _printable(text.removesuffix("\n").removesuffix("\n..."))


def _printable(text: str) -> str:
    """Text that a terminal shows and does not obey."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
