"""Apply overrides to a stored declaration with Hydra's grammar and groups; the original recipe is not needed."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from runner.composition.compose import compose
from runner.composition.composed import Composed
from runner.composition.origins import COMMAND_LINE, key_of
from runner.composition.recipe import Recipe
from runner.config.parts import TARGET
from runner.config.read import GROUPS, MANY_GROUPS, read
from runner.config.run_spec import RunSpec
from runner.config.store import Composition, StoredSpec, dump_yaml
from runner.errors import Fault
from runner.model.check import model_faults

__all__ = ["Overridden", "apply_overrides", "escape_interpolations"]

INTERPOLATION = re.compile(r"(\\*)\$\{")


class Overridden(NamedTuple):
    """A stored declaration with overrides applied."""

    stored: StoredSpec
    overrides: tuple[str, ...]
    faults: tuple[Fault, ...]
    """One for each override that could not be applied."""

    def read(self, *, refused: Sequence[Fault] = ()) -> RunSpec:
        """Convert to typed parts and check them.

        Args:
            refused: faults of the caller's own, told with those found here.

        Raises:
            SpecError: holds every fault found while applying the overrides and converting; or, if there is none, while
                checking.
        """
        return read(
            self.stored.config,
            import_roots=self.stored.import_roots,
            origin=self.origin,
            known_faults=[*self.faults, *refused],
            rules=[model_faults],
        )

    def origin(self, key: str) -> str:
        """Return whether a value came from the command line or from the run's own declaration."""
        keys = [key_of(override) for override in self.overrides]
        overridden = any(key == name or key.startswith(f"{name}.") for name in keys)
        return COMMAND_LINE if overridden else f"the run's own declaration (recipe {self.stored.source.recipe})"


def apply_overrides(stored: StoredSpec, overrides: Sequence[str]) -> Overridden:
    """Apply overrides to a stored declaration. Overriding a group replaces its whole node by that option's file.

    Raises:
        SpecError: the stored declaration can no longer be composed.
    """
    groups = [group for group in (*GROUPS, *MANY_GROUPS) if any(key_of(text) == group for text in overrides)]
    config = {key: value for key, value in stored.config.items() if key not in groups}
    defaults = [
        "_self_",
        *({group: stored.source.choices.get(group)} for group in groups),
    ]
    # Hydra composes from files only, so the stored configuration becomes a temporary one.
    with TemporaryDirectory() as directory:
        recipe = Recipe(Path(directory) / "stored.yaml")
        recipe.path.write_text(dump_yaml({"defaults": defaults, **escape_interpolations(config)}))
        composed = compose(
            recipe,
            overrides,
            directories=[Path(path) for path in stored.source.search_path],
        )
    return Overridden(
        stored=StoredSpec(
            config=_apply_target_overrides(stored.config, composed.config, overrides),
            import_roots=stored.import_roots,
            source=Composition(
                recipe=stored.source.recipe,
                overrides=[*stored.source.overrides, *composed.shown_overrides],
                choices={**stored.source.choices, **_choices(composed, groups)},
                search_path=stored.source.search_path,
            ),
        ),
        overrides=tuple(overrides),
        faults=composed.faults,
    )


def escape_interpolations(node: Any) -> Any:
    """Escape every `${`: stored values are resolved already, so Hydra must take what remains literally."""
    if isinstance(node, Mapping):
        return {key: escape_interpolations(value) for key, value in node.items()}
    if isinstance(node, list):
        return [escape_interpolations(value) for value in node]
    return INTERPOLATION.sub(r"\1\1\\${", node) if isinstance(node, str) else node


def _choices(composed: Composed, groups: Sequence[str]) -> dict[str, Any]:
    """Return Hydra's choices. Only single-option groups have one; the others list theirs as keys of their nodes."""
    return {group: composed.hydra["runtime"]["choices"].get(group) for group in groups if group in GROUPS}


def _apply_target_overrides(old: Mapping[str, Any], new: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Like target_override.py: where `_target_` changed, keep only the values that are overridden with it."""
    config = {key: new[key] for key in dict.fromkeys((*old, *new)) if key in new}
    keys = [key_of(override) for override in overrides]
    for group in GROUPS:
        node, before = config.get(group), old.get(group)
        if f"{group}.{TARGET}" not in keys or not isinstance(node, dict) or not isinstance(before, dict):
            continue
        if node[TARGET] != before[TARGET]:
            config[group] = {name: value for name, value in node.items() if f"{group}.{name}" in keys}
    return config
