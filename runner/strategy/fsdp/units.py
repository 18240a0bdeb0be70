"""Which modules are gathered and freed as one piece, and where a parameter that several of them share belongs."""

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from torch.nn import Module, ModuleDict, ModuleList, MultiheadAttention, Parameter, ParameterDict, ParameterList

from runner.errors import Fault, SpecError
from runner.model.blocks import blocks_of, class_faults, own_classes

# A container has no forward of its own, so that nothing would gather its parameters; attention reads those of its
# output projection without calling it. As torch.distributed.fsdp.wrap.size_based_auto_wrap_policy has it.
CONTAINERS = (ModuleList, ModuleDict, ParameterList, ParameterDict)
LEAVES = (MultiheadAttention,)


class Wrap(Enum):
    """Which modules become units; what is in none of them belongs to the root."""

    AUTO = "auto"
    """Those of `wrap_classes` if any are named, else those that the model names, else none."""
    CLASSES = "classes"
    """The modules of `wrap_classes`."""
    NO_SPLIT = "no_split"
    """The modules that the model names in `_no_split_modules`."""
    SIZE = "size"
    """From the leaves up, a module as soon as `wrap_min_params` of its parameters are in no unit yet."""
    NONE = "none"
    """The whole model is one."""


class Units(NamedTuple):
    """How a model is divided."""

    groups: list[list[Module]]
    """Innermost first; the modules of a group share a parameter and are gathered together."""
    owner_of_shared: dict[Parameter, Module | None]
    """Shared parameters of which some user lies in an inner unit, and the outer one they belong to; None = the root."""


def units_of(model: Module, *, wrap: Wrap, classes: Sequence[str], min_params: int, key: str) -> Units:
    """Divide a model.

    Raises:
        SpecError: the model does not have the classes that units are found by.
    """
    if faults := list(wrap_faults(model, wrap=wrap, classes=classes, key=key)):
        raise SpecError(*faults)
    modules = list(_chosen(model, wrap=wrap, classes=classes, min_params=min_params, key=key))
    return _with_shared_kept_together(model, [module for module in modules if module is not model])


def asks_for_classes(wrap: Wrap, classes: Sequence[str]) -> bool:
    """Whether `wrap_faults` depends on the model."""
    return wrap in (Wrap.CLASSES, Wrap.NO_SPLIT) or (wrap is Wrap.AUTO and bool(classes))


def wrap_faults(model: Module, *, wrap: Wrap, classes: Sequence[str], key: str) -> Iterator[Fault]:
    """Classes that units are found by and that the model does not have."""
    if wrap is Wrap.CLASSES or (wrap is Wrap.AUTO and classes):
        yield from class_faults(model, classes, key=f"{key}.wrap_classes")
    elif wrap is Wrap.NO_SPLIT and not own_classes(model):
        rule = "no_split, but the model names no classes of its own in _no_split_modules. Use classes, size or none."
        yield Fault(key=f"{key}.wrap", message=rule)


def _chosen(model: Module, *, wrap: Wrap, classes: Sequence[str], min_params: int, key: str) -> Sequence[Module]:
    """Parents before children."""
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
    """Parameters below this module that are in no unit; it becomes one if they are enough."""
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


def _with_shared_kept_together(model: Module, units: list[Module]) -> Units:
    """A shared parameter goes to the outermost unit (or the root) that uses it; with none outside the others, the units
    that use it become one.
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
        together = set().union(*(group_of[owner] for owner in owners if owner is not None))
        for unit in together:
            group_of[unit] = together
    groups: list[list[Module]] = []
    for unit in reversed(units):
        group = [other for other in units if other in group_of[unit]]
        if group not in groups:
            groups.append(group)
    return Units(groups, owner_of_shared)


def _shared(model: Module) -> Iterator[tuple[Parameter, set[Module]]]:
    """Parameters that more than one module holds, and those modules."""
    users: dict[Parameter, set[Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(parameter, set()).add(module)
    return ((parameter, modules) for parameter, modules in users.items() if len(modules) > 1)


def _innermost(module: Module, units: Sequence[Module], inside: dict[Module, set[Module]]) -> Module | None:
    """The last unit in which a module lies: children come after parents. None is the root."""
    return next((unit for unit in reversed(units) if module in inside[unit]), None)
