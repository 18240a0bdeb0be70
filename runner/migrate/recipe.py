"""Settings as the text of a recipe, in which the hooks are still to be named."""

from collections.abc import Iterator, Mapping
from typing import Any

from runner.config.parts import MISSING, TARGET
from runner.config.store import dump_yaml
from runner.migrate.outcome import Change, as_text, shown
from runner.migrate.translate import Migration

__all__ = ["recipe_text"]

STILL_MISSING = (
    ("model", TARGET),
    ("data", TARGET),
    ("loss", TARGET),
    ("batch", "items"),
    ("run", "steps"),
)
"""What a recipe must say, and a configuration of other libraries leaves to the script."""


def recipe_text(migration: Migration, *, name: str) -> str:
    """A recipe with all settings, and ??? for what must still be given.

    Args:
        name: of the run.
    """
    choices = [setting for setting in migration.settings if setting.is_choice]
    values = [setting for setting in migration.settings if not setting.is_choice]
    tree: dict[str, Any] = {"name": name, **{section: {} for section, _ in STILL_MISSING}}
    for setting in values:
        if setting.change is not Change.REMOVE:  # a key that the recipe does not set need not be removed
            _put(tree, setting.key.split("."), _without_interpolations(setting.value))
    for section, key in STILL_MISSING:
        tree[section].setdefault(key, MISSING)
    defaults = ["base", *({f"override {one.key}": one.value} for one in choices), "_self_"]
    return "\n".join([*_header(migration), dump_yaml({"defaults": defaults, **tree})])


def _header(migration: Migration) -> Iterator[str]:
    """Comments: where the settings are from, and what is not among them."""
    yield f"# The settings of {_one_line(migration.source)}. What is {MISSING} must still be given."
    missing = [line for line in migration.lines if line.outcome.is_missing]
    if missing:
        yield "# Not there:"
    for line in missing:
        key, value = line.argument
        yield f"#   {_one_line(f'{key}: {shown(value)}')} | {_one_line(line.outcome.remark)}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    *sections, key = path
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[key] = value


def _without_interpolations(value: Any) -> Any:
    """The value with every ${ escaped: to another library it is text."""
    if isinstance(value, Mapping):
        return {key: _without_interpolations(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_interpolations(one) for one in value]
    return as_text(value) if isinstance(value, str) else value
