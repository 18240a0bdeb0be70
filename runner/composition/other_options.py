"""Choosing another option leaves out what a recipe sets for the one that it chose itself.

    runner train pydoc_lm optimizer=sgd

The recipe chooses adamw and sets its betas, which sgd does not have. Values that both have, such as lr, stay.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from runner.composition.origins import ConfigFile, Origins, key_of
from runner.composition.recipe import Recipe
from runner.composition.yaml_file import parse
from runner.config.parts import TARGET
from runner.config.read import GROUPS, MANY_GROUPS

__all__ = ["LeftOut", "leave_out_values_of_other_options"]


class LeftOut(NamedTuple):
    """A value that takes no part in a composition, since it is set for another option."""

    key: str
    choice: str
    """The option that the run has: optimizer=sgd; for a group of several options the group."""
    other: str
    """The option that the value is set for: adamw."""
    file: ConfigFile

    def __str__(self) -> str:
        origin = self.file.setting(self.key).origin
        return f"{self.choice} has no {self.key.rpartition('.')[2]}, which {origin} sets for {self.other}"


def leave_out_values_of_other_options(
    config: Mapping[str, Any], choices: Mapping[str, Any], origins: Origins
) -> tuple[dict[str, Any], tuple[LeftOut, ...]]:
    """The configuration without what files set for an option that was replaced, and what was left out.

    A value is left out if the files of the chosen option do not have it, the command line does not set it, and every
    file that sets it chooses another option, on its own. What is in no option at all remains, for a fault to name it.
    """
    result = dict(config)
    left_out: list[LeftOut] = []
    for group in GROUPS:
        option, node = choices.get(group), config.get(group)
        if isinstance(option, str) and isinstance(node, Mapping):
            found = list(_left_out(node, group, option, origins))
            names = {one.key.partition(".")[2] for one in found}
            result[group] = {name: value for name, value in node.items() if name not in names}
            left_out += found
    for group in MANY_GROUPS:
        node = config.get(group)
        if isinstance(node, Mapping):
            found = [one for name in node for one in _of_no_option(node[name], group, name, origins)]
            keys = {one.key for one in found}
            result[group] = {name: value for name, value in node.items() if f"{group}.{name}" not in keys}
            left_out += found
    return result, tuple(left_out)


def _left_out(node: Mapping[str, Any], group: str, option: str, origins: Origins) -> Iterator[LeftOut]:
    path = origins.find(f"{group}/{option}")
    if path is None or set(node) <= {TARGET, *parse(path).content}:
        return  # the usual case; costs reading one small file
    of_option = [file.section(group) for file in origins.files if file.option.startswith(f"{group}/")]
    for name in node:
        key = f"{group}.{name}"
        if name == TARGET or any(name in section for section in of_option) or _is_overridden(key, origins):
            continue
        setting = [file for file in origins.files if name in file.section(group)]
        others = [_choices(file, group, origins)[-1:] for file in setting]
        if setting and all(other not in ([], [option]) for other in others):
            yield LeftOut(key, f"{group}={option}", others[-1][0], setting[-1])


def _of_no_option(node: Any, group: str, name: str, origins: Origins) -> Iterator[LeftOut]:
    """What files set for an option of several, if it is not among those that were chosen."""
    key = f"{group}.{name}"
    if not isinstance(node, Mapping) or TARGET in node or _is_overridden(key, origins):
        return
    setting = [file for file in origins.files if name in file.section(group)]
    if setting and all(name in _choices(file, group, origins) for file in setting):
        yield LeftOut(key, group, f"{group}=[{name}]", setting[-1])


def _is_overridden(key: str, origins: Origins) -> bool:
    return any(one == key or one.startswith(f"{key}.") for one in map(key_of, origins.overrides))


def _choices(file: ConfigFile, group: str, origins: Origins) -> list[str]:
    """The options of the group that a file chooses if it is composed alone, in merge order."""
    from runner.composition.defaults import resolve_defaults  # imports Hydra, which only such a value needs

    directories = (origins.recipe.directory, *origins.directories)
    entries = resolve_defaults(Recipe(file.path), directories, ())
    return [entry.option.partition("/")[2] for entry in entries if entry.option.startswith(f"{group}/")]
