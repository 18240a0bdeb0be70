"""Overriding `_target_` replaces the option instead of merging into it.

    runner train digits optimizer._target_=torch.optim.RMSprop optimizer.lr=0.01

Hydra merges this into conf/optimizer/adamw.yaml, whose betas and weight_decay belong to a different class: RMSprop
would reject some of these values and silently accept the others. So only the values that the recipe or the command
line sets next to the new target are kept.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.composition.origins import Origins, key_of
from runner.config.parts import TARGET
from runner.config.read import GROUPS, MANY_GROUPS
from runner.config.store import load_yaml

__all__ = ["apply_target_overrides"]


def apply_target_overrides(config: dict[str, Any], choices: Mapping[str, Any], origins: Origins) -> dict[str, Any]:
    """Drop the values that an option file sets for a target other than the one that its node now names."""
    result = dict(config)
    for group in GROUPS:
        option = choices.get(group)
        if isinstance(option, str):
            result[group] = _apply(result.get(group), group, f"{group}/{option}", origins)
    for group in MANY_GROUPS:
        nodes = result.get(group)
        if isinstance(nodes, Mapping):
            result[group] = {
                name: _apply(node, f"{group}.{name}", f"{group}/{name}", origins) for name, node in nodes.items()
            }
    return result


def _apply(node: Any, key: str, option: str, origins: Origins) -> Any:
    path = origins.find(option)
    if path is None or not isinstance(node, Mapping) or node.get(TARGET) == _target_in(path):
        return node  # the usual case; costs reading one small file
    group_dir = option.rpartition("/")[0] + "/"
    sections = [(file.option.startswith(group_dir), file.section(key)) for file in origins.files]
    option_targets = [section[TARGET] for in_group, section in sections if in_group and TARGET in section]
    if node.get(TARGET) in option_targets[-1:]:
        return node  # the option extends another one and inherits its target
    keep = {TARGET} | {name for in_group, section in sections if not in_group for name in section}
    for override_key in map(key_of, origins.overrides):
        if override_key.startswith(f"{key}."):
            keep.add(override_key[len(key) + 1 :].partition(".")[0])
    return {name: value for name, value in node.items() if name in keep}


def _target_in(path: Path) -> Any:
    """Return the target that an option file sets itself, or None if it only extends another option."""
    content = load_yaml(path.read_text())
    return content.get(TARGET) if isinstance(content, Mapping) else None
