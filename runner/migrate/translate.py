"""Applies the rules of a format to its arguments: a line for each, and every fault at once."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from runner.config.nearest import nearest_key
from runner.errors import Fault, SpecError
from runner.migrate.outcome import Argument, Line, Outcome, Rule, Setting, Values, shown

__all__ = ["Migration", "Translated", "is_given", "translate"]

UNKNOWN = "is not known to this format."


@dataclass(frozen=True)
class Migration:
    """A foreign configuration, translated.

    Raises:
        SpecError: two of its arguments set one key to different values.
    """

    source: str
    """What was read, for a person."""
    lines: Sequence[Line]

    def __post_init__(self) -> None:
        if faults := [*_contradictions(self.lines, self.source)]:
            raise SpecError(*faults)

    @property
    def settings(self) -> list[Setting]:
        """All settings, groups before their keys, each once."""
        found = {setting.key: setting for line in self.lines for setting in line.outcome.settings}
        return sorted(found.values(), key=lambda setting: not setting.is_choice)


class Translated(NamedTuple):
    """Lines, and a fault for each argument that is unknown or has a wrong value."""

    lines: list[Line]
    faults: list[Fault]


def is_given(value: Any) -> bool:
    """Whether a value says anything: null and empty text, lists and mappings do not."""
    return value is not None and value not in ("", [], {})


def translate(
    arguments: Mapping[str, Argument],
    find: Callable[[str], Rule | None],
    values: Values,
    *,
    origin: str,
    known: Collection[str],
) -> Translated:
    """Apply the rule of each argument.

    Args:
        arguments: by name.
        find: the rule for a name; None if it is unknown.
        values: what rules see beside their own value.
        origin: where the arguments stand, for faults.
        known: names to suggest in place of unknown ones.
    """
    lines: list[Line] = []
    faults: list[Fault] = []
    for name, argument in arguments.items():
        rule = find(name)
        if rule is None:
            message = f"{UNKNOWN}{nearest_key(name, known)} Correct or remove it."
            faults.append(Fault(key=argument.key, message=message, origin=origin))
        elif not is_given(argument.value):
            lines.append(Line(argument, Outcome(remark="not set")))
        else:
            try:
                lines.append(Line(argument, rule(argument.value, values)))
            except ValueError as wrong:
                message = f"{shown(argument.value)} {wrong}"
                faults.append(Fault(key=argument.key, message=message, origin=origin))
    return Translated(lines, faults)


def _contradictions(lines: Iterable[Line], origin: str) -> Iterator[Fault]:
    first: dict[str, tuple[Setting, str]] = {}
    for line in lines:
        for setting in line.outcome.settings:
            before, key = first.setdefault(setting.key, (setting, line.argument.key))
            if before != setting:
                rule = f"means {setting}, but {key} means {before}. Keep one of the two."
                yield Fault(key=line.argument.key, message=rule, origin=origin)
