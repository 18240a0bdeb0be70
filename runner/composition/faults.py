"""Apply overrides one at a time to report every faulty one: Hydra itself stops at the first that it cannot apply.

Runs inside the same contexts in which Hydra has just failed to compose.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from hydra import compose as hydra_compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from runner.composition.aliases import find_aliased
from runner.composition.config_files import choices_in_files
from runner.composition.origins import COMMAND_LINE
from runner.composition.recipe import Recipe
from runner.config.named_path import place
from runner.config.nearest import did_you_mean, listed, nearest_key
from runner.config.read import GROUPS, MANY_GROUPS
from runner.errors import Fault, SpecError

__all__ = ["COMPOSITION_ERRORS", "compose_with_faults"]

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError, TypeError, OSError)
"""What Hydra raises for files and overrides that it cannot compose: the last three for options that are no names."""


def compose_with_faults(
    recipe: Recipe, overrides: Sequence[str], *, error: Exception, directories: Sequence[Path]
) -> tuple[DictConfig, tuple[Fault, ...]]:
    """Compose with the overrides that can be applied and return a fault for each of the others.

    Overrides of keys inside a group whose option does not exist are skipped, because its keys are unknown.

    Args:
        error: what Hydra has raised for these overrides.
        directories: every directory that Hydra searches.

    Raises:
        SpecError: the recipe cannot be composed at all. Also holds the faults of the overrides found so far.
    """
    compose = _Composer(recipe, failed=overrides, error=error)
    faults: list[Fault] = []
    parsed: list[Override] = []
    for text in overrides:
        result = _parse(text)
        if isinstance(result, Fault):
            faults.append(result)
        else:
            parsed.append(result)
    groups = [override for override in parsed if _selects_option(override)]
    accepted: list[str] = []
    for override in groups:
        _try_override(compose, override, accepted, faults, describe=lambda o, e: _group_fault(o, e, directories))
    unknown = [f"{override.key_or_group}." for override in groups if str(override.input_line) not in accepted]
    try:
        base = compose(accepted)
    except COMPOSITION_ERRORS as broken:
        raise SpecError(*faults, _recipe_fault(broken, recipe, overrides, directories)) from None
    known = _dotted_keys(OmegaConf.to_container(base, resolve=False))
    for override in parsed:
        if override not in groups and not override.key_or_group.startswith(tuple(unknown)):
            _try_override(compose, override, accepted, faults, describe=lambda o, e: _value_fault(o, e, known))
    return compose(accepted), tuple(faults)


@final
class _Composer:
    """Composes with a list of overrides. Each list is composed once: Hydra takes 40 to 90 ms."""

    def __init__(self, recipe: Recipe, *, failed: Sequence[str], error: Exception) -> None:
        self._recipe = recipe
        self._results: dict[tuple[str, ...], DictConfig | Exception] = {tuple(failed): error}

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """Compose, or raise again what composing raised before."""
        key = tuple(overrides)
        if key not in self._results:
            try:
                self._results[key] = hydra_compose(self._recipe.name, list(overrides), return_hydra_config=True)
            except COMPOSITION_ERRORS as error:
                self._results[key] = error
        result = self._results[key]
        if isinstance(result, Exception):
            raise result
        return result


def _try_override(
    compose: _Composer,
    override: Override,
    accepted: list[str],
    faults: list[Fault],
    *,
    describe: Callable[[Override, Exception], Fault],
) -> None:
    """Compose with one more override; append it to `accepted`, or its fault to `faults`."""
    text = str(override.input_line)
    try:
        compose([*accepted, text])
    except COMPOSITION_ERRORS as error:
        if _is_broken(compose, accepted):
            accepted.append(text)  # composing fails without it too, so it is not the cause
        else:
            faults.append(describe(override, error))
    else:
        accepted.append(text)


def _is_broken(compose: _Composer, accepted: Sequence[str]) -> bool:
    try:
        compose(accepted)
    except COMPOSITION_ERRORS:
        return True
    return False


def _parse(text: str) -> Override | Fault:
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        syntax = "An override is key=value; quote a value that contains spaces or commas: 'key=\"a, b\"'."
        return Fault(
            key=text.partition("=")[0],
            message=f"{text!r}: {_one_line(error)} {syntax}",
            origin=COMMAND_LINE,
        )
    if not override.key_or_group:
        rule = "has no key before the =. An override is key=value."
        return Fault(key="command line", message=f"{text!r} {rule}", origin=COMMAND_LINE)
    if override.is_sweep_override():
        rule = f"several values make a sweep: add -m. To set a single list, write {override.key_or_group}=[a,b]."
        return Fault(key=override.key_or_group, message=f"{text!r}: {rule}", origin=COMMAND_LINE)
    return override


def _selects_option(override: Override) -> bool:
    """Whether the override selects an option of a group, that is, of a folder on the search path."""
    return bool(_options(override.key_or_group)) and not isinstance(override.value(), dict)


def _options(group: str) -> list[str]:
    try:
        return list(GlobalHydra.instance().config_loader().get_group_options(group)) if "." not in group else []
    except OSError:  # no file can have such a name
        return []


def _group_fault(override: Override, error: Exception, directories: Sequence[Path]) -> Fault:
    group, value = override.key_or_group, override.value()
    options = _options(group)
    unknown = [str(name) for name in (value if isinstance(value, list) else [value]) if str(name) not in options]
    if value is None:
        none = f" For none of them, use {group}=[]." if group in MANY_GROUPS else ""
        rule = f"null is not an option. Available: {listed(options)}.{none}"
        return Fault(key=group, message=rule, origin=COMMAND_LINE)
    if not unknown:
        return Fault(key=group, message=_one_line(error), origin=COMMAND_LINE)
    aliased = [f"{group}={option}" for option in find_aliased(unknown[0], group, directories)]
    hint = f" Its name here is {' or '.join(aliased)}." if aliased else did_you_mean(unknown[0], options)
    rule = f"there is no option {', '.join(map(repr, unknown))}.{hint} Available: {listed(options)}."
    return Fault(key=group, message=rule, origin=COMMAND_LINE)


def _value_fault(override: Override, error: Exception, known: Sequence[str]) -> Fault:
    key = override.key_or_group
    if key in known or key.startswith("hydra."):
        return Fault(key=key, message=_one_line(error), origin=COMMAND_LINE)
    hint = nearest_key(key, known)
    add = "" if override.is_delete() else f" To add a new key, write +{str(override.input_line).lstrip('+')}"
    return Fault(key=key, message=f"there is no such key.{hint}{add}", origin=COMMAND_LINE)


def _dotted_keys(node: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys of all values and sections, except Hydra's own."""
    keys: list[str] = []
    for name, value in node.items():
        keys.append(f"{prefix}{name}")
        if isinstance(value, Mapping):
            keys += _dotted_keys(value, f"{prefix}{name}.")
    return [key for key in keys if not key.startswith("hydra.")]


def _recipe_fault(error: Exception, recipe: Recipe, overrides: Sequence[str], directories: Sequence[Path]) -> Fault:
    """What is wrong with a recipe that cannot be composed, and which entry of a defaults list it is, if it is one."""
    missing = error.missing_cfg_file if isinstance(error, MissingConfigException) else None
    unmatched = re.match(r"In .*: Could not override '([^']+)'", str(error))
    origin = place(recipe.path)
    for entry in choices_in_files(recipe, directories[1:], overrides):
        names = [f"{entry.group}/{option}".lstrip("/") for option in entry.options]
        if missing in names or (unmatched and entry.overrides and entry.group == unmatched[1].partition("@")[0]):
            origin = place(entry.path, entry.line)
    return Fault(key="recipe", message=_recipe_rule(error, missing, unmatched), origin=origin)


def _recipe_rule(error: Exception, missing: str | None, unmatched: re.Match[str] | None) -> str:
    if isinstance(error, MissingConfigException) and missing is not None:
        group, _, name = missing.rpartition("/")
        options = error.options or []
        what = f"there is no option {name!r} in the group {group}" if group else f"there is no config file {name!r}"
        return f"{what}, which a defaults list names.{did_you_mean(name, options)} Available: {listed(options)}."
    if unmatched:
        group = unmatched[1].rpartition("/")[2].partition("@")[0]
        hint = did_you_mean(group, (*GROUPS, *MANY_GROUPS))
        return f"'override {unmatched[1]}' overrides nothing: no entry before it in the defaults is of its group.{hint}"
    return _one_line(error)


def _one_line(error: BaseException) -> str:
    """Return Hydra's message on one line, followed by that of the underlying cause."""
    messages = [str(reason) for reason in (error, error.__cause__) if reason is not None]
    lines = [line.strip() for text in messages for line in text.partition("Config search path:")[0].splitlines()]
    return " ".join(
        line for line in lines if line and not line.startswith(("None", "full_key", "object_type", "reference_type"))
    )
