"""Which options of every config group can run on this machine: each is asked by its own `check`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.composition.compose import compose
from runner.composition.recipe import Recipe, options, shipped_root
from runner.config.parts import build_part
from runner.config.read import GROUPS, read
from runner.config.run_spec import RunSpec
from runner.errors import Fault

__all__ = ["PROBE", "option_faults", "shipped_options"]

PROBE = Path(__file__).parent / "recipes" / "probe.yaml"
"""A recipe that contradicts no option: what an option still finds wrong, this machine or the person has to give."""


def shipped_options() -> dict[str, list[str]]:
    """The options of each group that come with the runner."""
    return options([shipped_root() / "conf"])


def option_faults(overrides: tuple[str, ...] = ()) -> dict[str, dict[str, list[str]]]:
    """What each option finds wrong, by group and name; an empty list = it can run here.

    Args:
        overrides: of the recipe in which they are checked.
    """
    found = shipped_options()
    # One composition for all of them, beside each other: composing each alone takes 40 ms.
    beside = [f"+{group}@probe.{group}.{name}={name}" for group, names in found.items() for name in names]
    composed = compose(Recipe(PROBE), [*overrides, *beside], directories=[shipped_root() / "conf"])
    config = dict(composed.config)
    nodes = config.pop("probe")
    spec = read(config, import_roots=[], check=False)  # not as a whole: each option is checked, beside the rest
    return {
        group: {name: _faults(spec, group, name, nodes[group][name]) for name in names}
        for group, names in found.items()
    }


def _faults(spec: RunSpec, group: str, name: str, node: Mapping[str, Any]) -> list[str]:
    built = build_part(node, key=group, adapter=GROUPS.get(group))
    part = built.value
    if part is None:
        return [_shown(fault, group) for fault in built.faults]
    chosen = part if group in GROUPS else {name: part}
    return [_shown(fault, group) for fault in part.check(RunSpec(**{**vars(spec), group: chosen}))]


def _shown(fault: Fault, group: str) -> str:
    return fault.message if fault.key == group else f"{fault.key}: {fault.message}"
