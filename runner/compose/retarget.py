"""What naming another `_target_` means: it replaces the option, it does not inherit the option's values.

    runner train digits optimizer._target_=torch.optim.RMSprop optimizer.lr=0.01

Hydra merges this onto conf/optimizer/adamw.yaml, whose betas and weight_decay were written for another class: half of
them RMSprop would refuse, the other half it would silently take. So only what the recipe or the command line gives
beside the new target counts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.compose.origins import Origins, key_of
from runner.config.parts import TARGET
from runner.config.read import GROUPS, MANY_GROUPS
from runner.config.store import load_yaml

__all__ = ["retargeted"]


def retargeted(config: dict[str, Any], choices: Mapping[str, Any], sources: Origins) -> dict[str, Any]:
    """The configuration without values that an option file gave to another target than the node's own."""
    result = dict(config)
    for group in GROUPS:
        option = choices.get(group)
        if isinstance(option, str):
            result[group] = _node(result.get(group), group, f"{group}/{option}", sources)
    for group in MANY_GROUPS:
        nodes = result.get(group)
        if isinstance(nodes, Mapping):
            result[group] = {
                name: _node(node, f"{group}.{name}", f"{group}/{name}", sources) for name, node in nodes.items()
            }
    return result


def _node(node: Any, key: str, option: str, sources: Origins) -> Any:
    path = sources.find(option)
    if path is None or not isinstance(node, Mapping) or node.get(TARGET) == _target_in(path):
        return node  # nearly always, at the price of one small file
    folder = option.rpartition("/")[0] + "/"
    said = [(holder.option.startswith(folder), holder.said(key)) for holder in sources.holders]
    if node.get(TARGET) in [content[TARGET] for by_option, content in said if by_option and TARGET in content][-1:]:
        return node  # the option extends another one, whose target it is
    kept = {TARGET} | {name for by_option, content in said if not by_option for name in content}
    for named in map(key_of, sources.overrides):
        if named.startswith(f"{key}."):
            kept.add(named[len(key) + 1 :].partition(".")[0])
    return {name: value for name, value in node.items() if name in kept}


def _target_in(path: Path) -> Any:
    """The target that an option file names for itself; an option that only extends another may have none."""
    content = load_yaml(path.read_text())
    return content.get(TARGET) if isinstance(content, Mapping) else None
