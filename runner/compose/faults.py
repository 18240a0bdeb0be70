"""Hydra stops at the first override that it cannot apply. Here they are tried one by one, and all faults are told.

Called inside the contexts in which Hydra has just failed to compose.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.compose.aliases import find_aliased
from runner.compose.origins import COMMAND_LINE
from runner.compose.recipe import Recipe
from runner.config.nearest import did_you_mean, listed
from runner.errors import Fault, SpecError

__all__ = ["salvage"]


def salvage(
    recipe: Recipe, overrides: Sequence[str], *, directories: Sequence[Path]
) -> tuple[DictConfig, tuple[Fault, ...]]:
    """What the good overrides make, and a fault for each of the others.

    Keys of a group whose option is wrong are left out: which keys it has, nobody knows.

    Args:
        directories: all that are searched.

    Raises:
        SpecError: the recipe cannot be composed even without any; with the faults of the overrides that are known.
    """
    faults: list[Fault] = []
    parsed: list[Override] = []
    for text in overrides:
        result = _parsed(text)
        if isinstance(result, Fault):
            faults.append(result)
        else:
            parsed.append(result)
    groups = [override for override in parsed if _names_group(override)]
    kept: list[str] = []
    for override in groups:
        _try(recipe, override, kept, faults, why=lambda o, e: _group_fault(o, e, directories))
    unknown = [f"{override.key_or_group}." for override in groups if str(override.input_line) not in kept]
    try:
        bare = _composed(recipe, kept)
    except (HydraException, OmegaConfBaseException) as error:
        raise SpecError(*faults, Fault(key="recipe", message=_told(error), origin=str(recipe.path))) from None
    known = _dotted(OmegaConf.to_container(bare, resolve=False))
    for override in parsed:
        if override not in groups and not override.key_or_group.startswith(tuple(unknown)):
            _try(
                recipe,
                override,
                kept,
                faults,
                why=lambda o, e: _value_fault(o, e, known),
            )
    return _composed(recipe, kept), tuple(faults)


def _try(
    recipe: Recipe,
    override: Override,
    kept: list[str],
    faults: list[Fault],
    *,
    why: Any,
) -> None:
    """Compose with one more override; keep it, or say why not."""
    text = str(override.input_line)
    try:
        _composed(recipe, [*kept, text])
    except (HydraException, OmegaConfBaseException) as error:
        if _recipe_is_broken(recipe, kept):
            kept.append(text)  # it cannot be judged, and is not what is wrong
        else:
            faults.append(why(override, error))
    else:
        kept.append(text)


def _recipe_is_broken(recipe: Recipe, kept: Sequence[str]) -> bool:
    try:
        _composed(recipe, kept)
    except (HydraException, OmegaConfBaseException):
        return True
    return False


def _composed(recipe: Recipe, overrides: Iterable[str]) -> DictConfig:
    return hydra_compose(recipe.name, list(overrides), return_hydra_config=True)


def _parsed(text: str) -> Override | Fault:
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        shape = "An override is key=value; quote what holds blanks or commas: 'key=\"a, b\"'."
        return Fault(
            key=text.partition("=")[0],
            message=f"{text!r}: {_told(error)} {shape}",
            origin=COMMAND_LINE,
        )
    if override.is_sweep_override():
        ways = f"several values make a sweep: add -m. One value that is a list is {override.key_or_group}=[a,b]."
        return Fault(key=override.key_or_group, message=f"{text!r}: {ways}", origin=COMMAND_LINE)
    return override


def _names_group(override: Override) -> bool:
    """Whether it chooses an option; a group is a folder on the search path."""
    return bool(_options(override.key_or_group)) and not isinstance(override.value(), dict)


def _options(group: str) -> list[str]:
    return list(GlobalHydra.instance().config_loader().get_group_options(group)) if "." not in group else []


def _group_fault(override: Override, error: Exception, directories: Sequence[Path]) -> Fault:
    group, value = override.key_or_group, override.value()
    options = _options(group)
    wrong = [str(name) for name in (value if isinstance(value, list) else [value]) if str(name) not in options]
    if not wrong:
        return Fault(key=group, message=_told(error), origin=COMMAND_LINE)
    same = [f"{group}={option}" for option in find_aliased(wrong[0], group, directories)]
    near = f" What is called so elsewhere is {' or '.join(same)}." if same else did_you_mean(wrong[0], options)
    rule = f"there is no option {', '.join(map(repr, wrong))}.{near} There are: {listed(options)}."
    return Fault(key=group, message=rule, origin=COMMAND_LINE)


def _value_fault(override: Override, error: Exception, known: Sequence[str]) -> Fault:
    key = override.key_or_group
    if key in known:
        return Fault(key=key, message=_told(error), origin=COMMAND_LINE)
    near = _near(key, known)
    add = "" if override.is_delete() else f" To add a key of your own: +{str(override.input_line).lstrip('+')}"
    return Fault(key=key, message=f"there is no such key.{near}{add}", origin=COMMAND_LINE)


def _dotted(node: Any, prefix: str = "") -> list[str]:
    """Every key and every section, dotted."""
    keys: list[str] = []
    for name, value in node.items():
        keys.append(f"{prefix}{name}")
        if isinstance(value, Mapping):
            keys += _dotted(value, f"{prefix}{name}.")
    return [key for key in keys if not key.startswith("hydra.")]


def _near(key: str, known: Sequence[str]) -> str:
    """The nearest key inside the deepest section that is there, or anywhere."""
    above = key.rpartition(".")[0]
    while above and above not in known:
        above = above.rpartition(".")[0]
    start = f"{above}." if above else ""
    near = did_you_mean(
        key[len(start) :],
        (name[len(start) :] for name in known if name.startswith(start)),
    )
    return near.replace("mean ", f"mean {start}", 1)


def _told(error: BaseException) -> str:
    """Hydra's own words on one line, with the cause that it keeps apart."""
    words = [str(reason) for reason in (error, error.__cause__) if reason is not None]
    lines = [line.strip() for text in words for line in text.splitlines()]
    return " ".join(
        line for line in lines if line and not line.startswith(("None", "full_key", "object_type", "reference_type"))
    )
