"""A stored declaration with overrides on top: Hydra's grammar and its groups, without the recipe that it came from."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from runner.compose.compose import compose
from runner.compose.composed import Composed
from runner.compose.origins import COMMAND_LINE, key_of
from runner.compose.recipe import Recipe
from runner.config.parts import TARGET
from runner.config.read import GROUPS, MANY_GROUPS
from runner.config.store import Composition, StoredSpec, dump_yaml
from runner.errors import Fault

__all__ = ["Overridden", "apply_overrides"]

INTERPOLATION = re.compile(r"(\\*)\$\{")


class Overridden(NamedTuple):
    """A declaration after its overrides."""

    stored: StoredSpec
    overrides: tuple[str, ...]
    faults: tuple[Fault, ...]
    """What kept overrides from being applied."""

    def origin(self, key: str) -> str:
        """The command line, or the run's own declaration."""
        named = [key_of(override) for override in self.overrides]
        given = any(key == name or key.startswith(f"{name}.") for name in named)
        return COMMAND_LINE if given else f"the run's own declaration (recipe {self.stored.source.recipe})"


def apply_overrides(stored: StoredSpec, overrides: Sequence[str]) -> Overridden:
    """Apply overrides to what was frozen; a group override puts that option's file in the place of the group's node.

    Raises:
        SpecError: what was frozen cannot be composed any more.
    """
    groups = [group for group in (*GROUPS, *MANY_GROUPS) if any(key_of(text) == group for text in overrides)]
    config = {key: value for key, value in stored.config.items() if key not in groups}
    defaults = [
        "_self_",
        *({group: stored.source.choices.get(group)} for group in groups),
    ]
    # Hydra composes from files only; this one lives as long as it does.
    with TemporaryDirectory() as directory:
        recipe = Recipe(Path(directory) / "stored.yaml")
        recipe.path.write_text(dump_yaml({"defaults": defaults, **_literal(config)}))
        composed = compose(
            recipe,
            overrides,
            directories=[Path(path) for path in stored.source.search_path],
        )
    return Overridden(
        stored=StoredSpec(
            config=_retargeted(stored.config, composed.config, overrides),
            import_roots=stored.import_roots,
            source=Composition(
                recipe=stored.source.recipe,
                overrides=[*stored.source.overrides, *overrides],
                choices={**stored.source.choices, **_choices(composed, groups)},
                search_path=stored.source.search_path,
            ),
        ),
        overrides=tuple(overrides),
        faults=composed.faults,
    )


def _literal(node: Any) -> Any:
    """For Hydra, which resolves it again: what still looks like an interpolation was escaped, or stood in a file."""
    if isinstance(node, Mapping):
        return {key: _literal(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_literal(value) for value in node]
    return INTERPOLATION.sub(r"\1\1\\${", node) if isinstance(node, str) else node


def _choices(composed: Composed, groups: Sequence[str]) -> dict[str, Any]:
    """Hydra records the choice of a group that has one option; many-of-a-kind groups name theirs in their nodes."""
    return {group: composed.hydra["runtime"]["choices"].get(group) for group in groups if group in GROUPS}


def _retargeted(old: Mapping[str, Any], new: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """As compose/retarget.py has it: another `_target_` keeps only what is given beside it."""
    config = {key: new[key] for key in dict.fromkeys((*old, *new)) if key in new}
    named = [key_of(override) for override in overrides]
    for group in GROUPS:
        node, before = config.get(group), old.get(group)
        if f"{group}.{TARGET}" not in named or not isinstance(node, dict) or not isinstance(before, dict):
            continue
        if node[TARGET] != before[TARGET]:
            config[group] = {name: value for name, value in node.items() if f"{group}.{name}" in named}
    return config
