"""Finds the repeated blocks of a model, which are sharded, recomputed or compiled as units."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from runner.errors import Fault, SpecError

if TYPE_CHECKING:
    from torch.nn import Module


@runtime_checkable
class NamesItsBlocks(Protocol):
    """A model that names classes of modules that must not be split, as models of transformers do."""

    _no_split_modules: Collection[str] | None


def own_classes(model: "Module") -> list[str]:
    """The classes in `_no_split_modules` of the model, or of a model inside it, that the model has modules of."""
    named: set[str] = set()
    for module in model.modules():
        if isinstance(module, NamesItsBlocks):
            named |= set(module._no_split_modules or ())
    return sorted(named & {type(module).__name__ for module in model.modules()})


def class_faults(model: "Module", classes: Sequence[str], *, key: str) -> Iterator[Fault]:
    """Report classes that the model has no modules of, and list those that it has.

    Args:
        classes: names, as in `type(module).__name__`.
        key: of the field that contains the names.
    """
    present = Counter(type(module).__name__ for module in model.modules())
    absent = [name for name in classes if name not in present]
    if absent:
        names = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in present.most_common())
        rule = f"{absent} are not classes of modules of this model. It has: {names}."
        yield Fault(key=key, message=rule)


def block_faults(model: "Module", classes: Sequence[str], *, key: str) -> Iterator[Fault]:
    """Report why `named_blocks` cannot find blocks, if it cannot."""
    if classes:
        yield from class_faults(model, classes, key=key)
    elif not own_classes(model):
        present = ", ".join(sorted({type(module).__name__ for module in model.modules()}))
        rule = f"which modules are blocks? The model has no _no_split_modules. Name classes of: {present}."
        yield Fault(key=key, message=rule)


def blocks_of(model: "Module", classes: Sequence[str], *, key: str) -> "list[Module]":
    """The modules of these classes, parents before children.

    Raises:
        SpecError: the model has no module of some class.
    """
    if faults := list(class_faults(model, classes, key=key)):
        raise SpecError(*faults)
    return [module for module in model.modules() if type(module).__name__ in classes]


def named_blocks(model: "Module", classes: Sequence[str], *, key: str) -> "list[Module]":
    """The outermost modules of these classes, or of those that the model names itself if `classes` is empty.

    Raises:
        SpecError: the model has no module of some class, or neither the caller nor the model names classes.
    """
    if faults := list(block_faults(model, classes, key=key)):
        raise SpecError(*faults)
    return outermost(blocks_of(model, list(classes) or own_classes(model), key=key))


def outermost(modules: "Iterable[Module]") -> "list[Module]":
    """Drop modules that are inside another one of them.

    Args:
        modules: parents before children.
    """
    inside: set[Module] = set()
    result = []
    for module in modules:
        if module not in inside:
            result.append(module)
            inside |= set(module.modules())
    return result
