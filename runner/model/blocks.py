"""The repeated blocks of a model: what is sharded, recomputed or compiled as one piece."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol, runtime_checkable

from torch.nn import Module

from runner.errors import Fault, SpecError


@runtime_checkable
class NamesItsBlocks(Protocol):
    """A model that says which of its classes must stay in one piece, as transformers' do."""

    _no_split_modules: Collection[str] | None


def own_classes(model: Module) -> list[str]:
    """The block classes that the model itself, or a model inside it, names in `_no_split_modules`, and that it has."""
    named: set[str] = set()
    for module in model.modules():
        if isinstance(module, NamesItsBlocks):
            named |= set(module._no_split_modules or ())
    return sorted(named & {type(module).__name__ for module in model.modules()})


def blocks_of(model: Module, classes: Sequence[str], *, key: str) -> list[Module]:
    """The modules of these classes, parents before children.

    Args:
        classes: names as `type(module).__name__` gives them.
        key: where the names were said, for the fault.

    Raises:
        SpecError: the model has no module of some class; lists the classes that it has.
    """
    there = Counter(type(module).__name__ for module in model.modules())
    absent = [name for name in classes if name not in there]
    if absent:
        listed = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in there.most_common())
        rule = f"{absent} are not classes of modules of this model. It has: {listed}."
        raise SpecError(Fault(key=key, message=rule))
    return [module for module in model.modules() if type(module).__name__ in classes]


def named_blocks(model: Module, classes: Sequence[str], *, key: str) -> list[Module]:
    """The outermost modules of these classes, or of those that the model names itself if none are given.

    Raises:
        SpecError: a class is not there, or nobody names any.
    """
    wanted = list(classes) or own_classes(model)
    if not wanted:
        there = ", ".join(sorted({type(module).__name__ for module in model.modules()}))
        rule = f"which modules are blocks? The model has no _no_split_modules; name its classes, of: {there}."
        raise SpecError(Fault(key=key, message=rule))
    return outermost(blocks_of(model, wanted, key=key))


def outermost(modules: Iterable[Module]) -> list[Module]:
    """Those that lie in no other of them; parents must come before children."""
    inside: set[Module] = set()
    found = []
    for module in modules:
        if module not in inside:
            found.append(module)
            inside |= set(module.modules())
    return found
