"""Divides a model into units, which are gathered and freed as one, and assigns shared parameters to units."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch.nn import Module, ModuleDict, ModuleList, MultiheadAttention, Parameter, ParameterDict, ParameterList

from runner.errors import Fault, SpecError
from runner.model.blocks import blocks_of, class_faults, own_classes
from runner.strategy.fsdp.wrap import Wrap

# A container has no forward, so nothing would gather its parameters; attention reads the parameters of its output
# projection without calling it. The same lists as in torch.distributed.fsdp.wrap.size_based_auto_wrap_policy.
CONTAINERS = (ModuleList, ModuleDict, ParameterList, ParameterDict)
LEAVES = (MultiheadAttention,)


class Units(NamedTuple):
    """How a model is divided."""

    groups: list[list[Module]]
    """Innermost first; the modules of a group share a parameter and are gathered together."""
    owner_of_shared: dict[Parameter, Module | None]
    """Parameters shared with an inner unit, and the outer unit that they belong to; None = the root."""


def units_of(model: Module, *, wrap: Wrap, classes: Sequence[str], min_params: int, key: str) -> Units:
    """Divide a model into units.

    Raises:
        SpecError: the model lacks the classes that are to be units.
    """
    if faults := list(wrap_faults(model, wrap=wrap, classes=classes, key=key)):
        raise SpecError(*faults)
    chosen = _chosen(model, wrap=wrap, classes=classes, min_params=min_params, key=key)
    modules = [module for module in chosen if any(True for _ in module.parameters())]  # a pipeline takes some away
    return _with_shared_parameters(model, [module for module in modules if module is not model])


def wrap_faults(model: Module, *, wrap: Wrap, classes: Sequence[str], key: str) -> Iterator[Fault]:
    """Report classes that are to be units but that the model lacks."""
    if wrap is Wrap.CLASSES or (wrap is Wrap.AUTO and classes):
        yield from class_faults(model, classes, key=f"{key}.wrap_classes")
    elif wrap is Wrap.NO_SPLIT and not own_classes(model):
        rule = "no_split, but the model names no classes of its own in _no_split_modules. Use classes, size or none."
        yield Fault(key=f"{key}.wrap", message=rule)


def _chosen(model: Module, *, wrap: Wrap, classes: Sequence[str], min_params: int, key: str) -> Sequence[Module]:
    """The modules that become units, parents before children."""
    if wrap is Wrap.NONE:
        return []
    if wrap is Wrap.SIZE:
        large: set[Module] = set()
        _grow(model, min_params, large, seen=set())
        return [module for module in model.modules() if module in large]
    if wrap is Wrap.CLASSES or (wrap is Wrap.AUTO and classes):
        return blocks_of(model, classes, key=f"{key}.wrap_classes")
    return blocks_of(model, own_classes(model), key=f"{key}.wrap")


def _grow(module: Module, min_params: int, large: set[Module], *, seen: set[Parameter]) -> int:
    """Add modules to `large` from the leaves up; returns the number of parameters below that are in no unit."""
    free = sum(parameter.numel() for parameter in module.parameters(recurse=False) if parameter not in seen)
    seen |= set(module.parameters(recurse=False))
    if isinstance(module, LEAVES):
        free = sum(parameter.numel() for parameter in module.parameters())
        seen |= set(module.parameters())
    else:
        free += sum(_grow(child, min_params, large, seen=seen) for child in module.children())
    if free < min_params or isinstance(module, CONTAINERS):
        return free
    large.add(module)
    return 0


def _with_shared_parameters(model: Module, units: list[Module]) -> Units:
    """Assign each shared parameter to the unit (or the root) that contains all others using it; if there is none, the
    units that use it are merged into one group.
    """
    inside = {unit: set(unit.modules()) for unit in units}
    group_of = {unit: {unit} for unit in units}
    owner_of_shared: dict[Parameter, Module | None] = {}
    for parameter, users in _shared(model):
        owners = {_innermost(user, units, inside) for user in users}
        if len(owners) == 1:
            continue
        outermost = {owner for owner in owners if owner is None or owners <= inside[owner]}
        if outermost:
            owner_of_shared[parameter] = outermost.pop()
            continue
        merged = set().union(*(group_of[owner] for owner in owners if owner is not None))
        for unit in merged:
            group_of[unit] = merged
    groups: list[list[Module]] = []
    for unit in reversed(units):
        group = [other for other in units if other in group_of[unit]]
        if group not in groups:
            groups.append(group)
    return Units(groups, owner_of_shared)


def _shared(model: Module) -> Iterator[tuple[Parameter, set[Module]]]:
    """Parameters that belong to more than one module, and those modules."""
    users: dict[Parameter, set[Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(parameter, set()).add(module)
    return ((parameter, modules) for parameter, modules in users.items() if len(modules) > 1)


def _innermost(module: Module, units: Sequence[Module], inside: dict[Module, set[Module]]) -> Module | None:
    """The innermost unit that contains a module, the last one since children come after parents; None is the root."""
    return next((unit for unit in reversed(units) if module in inside[unit]), None)
