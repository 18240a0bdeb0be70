"""Run Hydra once: recipe, groups and overrides in, one plain configuration out.

This uses the compose API because @hydra.main takes twice as long (112 ms instead of 57 ms for six groups) and creates
an output directory of its own.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.composition.composed import Composed
from runner.composition.config_files import check_files
from runner.composition.faults import COMPOSITION_ERRORS, compose_with_faults
from runner.composition.lock_file import LOCK, lock_of
from runner.composition.origins import Origins
from runner.composition.other_options import leave_out_values_of_other_options
from runner.composition.recipe import LOCK_SUFFIX, Recipe, search_path
from runner.composition.search_path import initialized_hydra
from runner.composition.secrets import secret_overrides, with_secrets
from runner.composition.target_override import apply_target_overrides
from runner.composition.yaml_file import parse
from runner.config.masking import marked, shown_override
from runner.config.named_path import place
from runner.config.parts import TARGET
from runner.config.read import GROUPS
from runner.errors import Fault, SpecError

__all__ = ["compose", "from_hydra"]


def compose(
    recipe: Recipe,
    overrides: Sequence[str],
    *,
    config_dirs: Sequence[Path] = (),
    directories: Sequence[Path] | None = None,
) -> Composed:
    """Compose a recipe. Overrides that cannot be applied become faults in the result instead of an exception.

    Args:
        overrides: in Hydra's grammar.
        config_dirs: searched after all others (Hydra's --config-dir).
        directories: searched after the recipe's own directory; None = the recipe's default search path.

    Raises:
        SpecError: the recipe itself cannot be composed, so no override can be checked; or it does not include base.
    """
    directories = (
        *(search_path(recipe) if directories is None else directories),
        *config_dirs,
    )
    with ExitStack() as stack:
        overrides = stack.enter_context(secret_overrides(overrides))
        check_files(recipe, directories, overrides)
        stack.enter_context(initialized_hydra(recipe, directories))
        try:
            config = hydra_compose(recipe.name, list(overrides), return_hydra_config=True)
            faults: tuple[Fault, ...] = ()
        except COMPOSITION_ERRORS as error:
            searched = (recipe.directory, *directories)
            config, faults = compose_with_faults(recipe, overrides, error=error, directories=searched)
        _check_base(config, recipe)
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)  # resolves ${hydra:…}
        try:
            return from_hydra(
                recipe,
                *_without_hydra(config),
                directories=directories,
                faults=faults,
            )
        finally:
            HydraConfig.instance().cfg = before


def from_hydra(
    recipe: Recipe,
    job: DictConfig,
    hydra: DictConfig,
    *,
    directories: Sequence[Path],
    faults: Sequence[Fault] = (),
) -> Composed:
    """Convert a configuration that Hydra composed to plain containers and resolve its interpolations.

    Args:
        job: the configuration without Hydra's own node.
        hydra: Hydra's own node; it must be set in HydraConfig already, so that ${hydra:…} resolves.
    """
    hydra_node = cast("dict[str, Any]", OmegaConf.to_container(hydra, resolve=False, enum_to_str=True))
    raw = cast("dict[str, Any]", OmegaConf.to_container(job, resolve=False, enum_to_str=True))
    plain, unresolved = _to_plain(job)
    lock = None
    if LOCK in plain:
        _check_lock_name(recipe)
        lock = lock_of(plain.pop(LOCK), origin=_line_of(LOCK, recipe))
        hydra_node["runtime"]["choices"] |= lock.choices
    origins = Origins(recipe, tuple(directories), tuple(hydra_node["overrides"]["task"]))
    choices = hydra_node["runtime"]["choices"]
    config = apply_target_overrides(with_secrets(plain, raw), choices, origins)
    config, left_out = leave_out_values_of_other_options(config, choices, origins)
    return Composed(
        recipe=recipe,
        config=marked(config, origins.source),
        left_out=left_out,
        hydra=hydra_node,
        origins=origins,
        faults=tuple(replace(fault, message=shown_override(fault.message)) for fault in (*faults, *unresolved)),
        lock=lock,
    )


def _check_lock_name(recipe: Recipe) -> None:
    if recipe.locks is None:
        rule = f"the file is a lock file, whose name ends in {LOCK_SUFFIX}. Rename it; or delete the section."
        raise SpecError(Fault(key=LOCK, message=rule, origin=_line_of(LOCK, recipe)))


def _check_base(config: DictConfig, recipe: Recipe) -> None:
    """Raise if the recipe includes nothing that chooses options: without base, every key that it leaves out is missing.

    Raises:
        SpecError: no group whose options must be parts has one.
    """
    raw: Any = OmegaConf.to_container(config, resolve=False)
    nodes = (raw.get(group) for group, adapter in GROUPS.items() if adapter is None)
    if any(isinstance(node, dict) and TARGET in node for node in nodes):
        return
    rule = (
        "base is not included, so that no group has an option and no section its defaults. Begin the recipe with "
        "defaults: [base, _self_]"
    )
    raise SpecError(Fault(key="defaults", message=rule, origin=_line_of("defaults", recipe)))


def _line_of(key: str, recipe: Recipe) -> str:
    """Where a key stands in the recipe's own file."""
    return place(recipe.path, parse(recipe.path).line(key))


def _without_hydra(config: DictConfig) -> tuple[DictConfig, DictConfig]:
    """The configuration without Hydra's own node, and that node."""
    hydra = config.hydra
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return config, hydra


def _to_plain(config: DictConfig) -> tuple[dict[str, Any], list[Fault]]:
    try:
        return _contents(config), []
    except OmegaConfBaseException:
        raw = cast(
            "dict[str, Any]",
            OmegaConf.to_container(config, resolve=False, enum_to_str=True),
        )
        return raw, _resolve_each(config, raw)


def _contents(node: Any) -> Any:
    """Plain containers, with every interpolation in them resolved."""
    return OmegaConf.to_container(node, resolve=True, enum_to_str=True)


def _resolve_each(config: Any, raw: Any, section: str = "") -> list[Fault]:
    """Resolve a dict or list value by value in place. One that cannot be resolved keeps its text and yields a fault.

    Args:
        config: the node of the configuration that `raw` was made of.
    """
    faults = []
    values: Iterable[tuple[Any, Any]] = raw.items() if isinstance(raw, dict) else enumerate(raw)
    for name, value in values:
        key = f"{section}.{name}" if section else str(name)
        if isinstance(value, dict | list):
            faults += _resolve_each(config[name], value, key)
        elif isinstance(value, str) and "${" in value:
            try:
                found = config[name]
                raw[name] = _contents(found) if OmegaConf.is_config(found) else found
            except OmegaConfBaseException as error:
                reason = str(error).partition("\n")[0]
                faults.append(Fault(key=key, message=f"{value!r} cannot be resolved: {reason}"))
    return faults
