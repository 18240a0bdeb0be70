"""What is known of each value of a composed declaration: where it came from, what it replaced, what it may be."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

from runner.composition.composed import Composed, is_shipped
from runner.composition.origins import Setting, select
from runner.composition.recipe import import_roots, is_own, options
from runner.config import hooks
from runner.config.fields import Key, choices_of, keys_of
from runner.config.imports import NotFound, import_from, locate
from runner.config.masking import below, collected, marked, scrubber, shown_override
from runner.config.nearest import nearest_key
from runner.config.parts import MISSING, TARGET, imports_any
from runner.config.read import GROUPS, MANY_GROUPS, SECTIONS
from runner.config.read_models import SEVERAL
from runner.config.rules import range_of
from runner.config.secret import MASK, Secret, is_reference
from runner.config.source import find_function
from runner.errors import Fault, SpecError

__all__ = ["Explanation", "Known", "explain"]


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a key, whatever its value."""

    type: str = ""
    """In words; empty if it is not known."""
    rule: str = ""
    """The range of a number, or another rule; may be empty."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """The values or options that there are, each with its meaning, which may be empty; empty if it is no choice."""
    meaning: str = ""
    """May be empty."""

    @classmethod
    def of(cls, key: Key, *, rule: str = "") -> "Known":
        """What the field of a dataclass declares."""
        return cls(type=key.type, rule=rule or key.rule, choices=choices_of(key.hint), meaning=key.meaning)


TARGETS = Known(type="the dotted path of a function or class")
OF_THE_RUN = {
    "name": Known(type="text without a slash", meaning="Name of the run, and part of the name of its directory."),
    "version": Known(type="text or null", meaning="Version of the recipe, recorded with each run."),
    "models": Known(type="a mapping of names", meaning="Several models in place of `model`, each by its name."),
    "phases": Known(type="a mapping of names", meaning="What a step does in turns, in place of one `loss`."),
}


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A value, or the option of a group. Secrets are masked."""

    key: str
    value: Any
    """Resolved; for a group, its option, or a list of them."""
    settings: Sequence[Setting]
    """What sets it, in the order in which it applies: the last one wins. Interpolations are not resolved."""
    known: Known
    is_group: bool = False


def explain(composed: Composed, key: str | None = None) -> list[Explanation]:
    """Explain every value of a declaration, or those of one key and of the keys inside it.

    Parts are imported, but of a recipe outside the working directory only the runner's own. Hooks are not: what they
    take is read in their source.

    Raises:
        SpecError: overrides could not be applied, or there is no such key.
    """
    if composed.faults:
        raise SpecError(*composed.faults)
    explaining = _Explaining(composed)
    if key is None:
        return [one for section in explaining.sections for one in explaining.explanations(section)]
    inside = explaining.explanations(key.partition(".")[0])
    found = [one for one in inside if f"{one.key}.".startswith(f"{key}.")]
    if not found:
        if left_out := [one for one in composed.left_out if f"{one.key}.".startswith(f"{key}.")]:
            raise SpecError(*(Fault(key=one.key, message=f"{one}.") for one in left_out))
        known = list(dict.fromkeys((*GROUPS, *MANY_GROUPS, *_keys(composed.config))))
        raise SpecError(Fault(key=key, message=f"there is no such key.{nearest_key(key, known)}"))
    return found


def _keys(node: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The dotted keys of all sections and values."""
    for name, value in node.items():
        yield below(above, name)
        if isinstance(value, Mapping):
            yield from _keys(value, below(above, name))


class _Explaining:
    """Explains one declaration."""

    def __init__(self, composed: Composed) -> None:
        self._config = composed.config
        self._choices = composed.choices
        self._origins = composed.origins
        self._roots = import_roots(composed.recipe)
        self._imports: Callable[[str], bool] = imports_any if is_own(composed.recipe) else is_shipped
        self._scrub = scrubber(collected(composed.config).values())
        if self._imports is imports_any:
            import_from(self._roots)

    @property
    def sections(self) -> list[str]:
        """The sections and groups of the declaration, in its order."""
        return list(dict.fromkeys((*self._config, *MANY_GROUPS)))

    def explanations(self, section: str) -> Iterator[Explanation]:
        """The values of a section in their order; before those of a group, its option."""
        if section in GROUPS or section in MANY_GROUPS:
            yield self._group(section)
        if section in self._config:
            yield from self._values(section, self._config[section], self._known(section))

    def _group(self, group: str) -> Explanation:
        available = options([self._origins.recipe.directory, *self._origins.directories])
        many = list(self._config.get(group) or {})
        return Explanation(
            key=group,
            value=many if group in MANY_GROUPS else self._choices.get(group),
            settings=self._origins.choices(group),
            known=Known(choices=dict.fromkeys(available.get(group, ()), "")),
            is_group=True,
        )

    def _values(self, key: str, value: Any, known: Mapping[str, Known]) -> Iterator[Explanation]:
        if isinstance(value, Mapping) and value:
            for name, inner in value.items():
                yield from self._values(below(key, name), inner, known)
            return
        settings = [self._masked(one, key, secret=isinstance(value, Secret)) for one in self._origins.settings(key)]
        meaning = next((one.comment for one in settings if one.comment), "")
        of_key = TARGETS if key.endswith(f".{TARGET}") else known.get(key, Known())
        if not of_key.meaning:
            of_key = replace(of_key, meaning=meaning)
        yield Explanation(key=key, value=self._shown(value), settings=settings, known=of_key)

    def _known(self, name: str) -> dict[str, Known]:
        """What is known of the keys in one section."""
        if name in SEVERAL and self._config[name]:
            keys = keys_of(SEVERAL[name])
            return {f"{name}.{one}.{key.name}": Known.of(key) for one in self._config[name] for key in keys}
        if name in OF_THE_RUN:
            return {name: OF_THE_RUN[name]}
        if name in SECTIONS:
            found = [(f"{name}.{key.name}", key) for key in keys_of(SECTIONS[name])]
            return {dotted: Known.of(key, rule=range_of(dotted)) for dotted, key in found}
        if name in GROUPS:
            return self._known_of_part(name, self._config[name])
        if name in MANY_GROUPS and isinstance(self._config[name], Mapping):
            parts = [self._known_of_part(below(name, one), node) for one, node in self._config[name].items()]
            return {key: known for part in parts for key, known in part.items()}
        return self._known_of_hook(name, self._config[name]) if name in hooks.POSITIONAL else {}

    def _known_of_part(self, key: str, node: Any) -> dict[str, Known]:
        target = str(node.get(TARGET)) if isinstance(node, Mapping) else ""
        if not self._imports(target):
            return {}
        try:
            found = locate(target)
        except NotFound:  # `runner check` says so; its keys are explained without their types
            return {}
        if not is_dataclass(found):
            adapter = GROUPS.get(key)
            found = locate(adapter) if adapter else None
        keys = keys_of(found) if isinstance(found, type) else []
        return {f"{key}.{one.name}": Known.of(one) for one in keys}

    def _known_of_hook(self, key: str, node: Any) -> dict[str, Known]:
        """Of its arguments, and of those of what is built for it."""
        if not isinstance(node, Mapping):
            return {}
        found = find_function(str(node.get(TARGET)), self._roots, positional=hooks.POSITIONAL.get(key, 0))
        known = {
            f"{key}.{one.name}": Known(type=one.type, meaning=one.meaning)
            for one in (found.parameters if found else ())
        }
        for name, inner in node.items():
            known |= self._known_of_hook(below(key, name), inner)
        return known

    def _masked(self, setting: Setting, key: str, *, secret: bool) -> Setting:
        return setting._replace(
            value=self._shown(_hidden(setting.value, key, secret=secret)),
            comment=self._scrub(setting.comment),
            override=self._scrub(shown_override(setting.override)),
        )

    def _shown(self, value: Any) -> Any:
        """A value with *** in place of each secret."""
        if isinstance(value, Secret):
            return MASK
        if isinstance(value, Mapping):
            return {name: self._shown(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._shown(inner) for inner in value]
        return self._scrub(shown_override(value)) if isinstance(value, str) else value


def _hidden(value: Any, key: str, *, secret: bool) -> Any:
    """A value as it is written in one place, with a Secret in place of what must not be shown; a reference may be."""
    if value is None or value == MISSING or (isinstance(value, str) and is_reference(value)):
        return value
    if secret:
        return Secret(value=value, source="")
    nested = value
    for name in reversed(key.split(".")):
        nested = {name: nested}
    return select(marked(nested, origin=lambda _key: ""), key)
