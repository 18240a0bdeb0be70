"""Nested values: tensors in mappings, lists, tuples, named tuples and dataclasses."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from copy import copy
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from runner.errors import HookError

__all__ = ["NamedFields", "contents", "map_leaves", "map_tensors"]


@runtime_checkable
class NamedFields(Protocol):
    """A named tuple."""

    _fields: tuple[str, ...]


def contents(value: Any) -> Iterator[tuple[Any, Any]] | None:
    """The names of a container's values, and the values; None if it is no container."""
    if isinstance(value, Mapping):
        return iter(value.items())
    if isinstance(value, tuple) and isinstance(value, NamedFields):
        return zip(value._fields, value, strict=True)
    if isinstance(value, list | tuple):
        return iter(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    return None


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor."""
    return isinstance(value, Tensor)


def map_leaves(
    function: Callable[[str, Any], Any], values: Any, path: str = "", *, is_leaf: Callable[[Any], bool] = is_tensor
) -> Any:
    """The same nesting with `function(path, leaf)` in place of everything that is not a container itself.

    Containers keep their class: a dataclass keeps what is not a field, too, and a mapping what else it is (the factory
    of a defaultdict). A mapping that can be made neither by copying it nor from a dict becomes a dict.

    Args:
        path: of `values`: features.image.
        is_leaf: whether a value is one, whatever it contains.
    """
    found = None if is_leaf(values) else contents(values)
    if found is None:
        return function(path, values)
    mapped = {
        name: map_leaves(function, value, f"{path}.{name}" if path else str(name), is_leaf=is_leaf)
        for name, value in found
    }
    if isinstance(values, Mapping):
        return _mapping_like(values, mapped)
    if isinstance(values, tuple) and isinstance(values, NamedFields):
        return type(values)(*mapped.values())
    if isinstance(values, list | tuple):
        return type(values)(mapped.values())
    clone = copy(values)
    for name, value in mapped.items():
        object.__setattr__(clone, name, value)  # of frozen ones, too
    return clone


def _mapping_like(values: Mapping[Any, Any], mapped: dict[Any, Any]) -> Mapping[Any, Any]:
    if type(values) is dict:
        return mapped
    if isinstance(values, MutableMapping):
        same = copy(values)
        for key, value in mapped.items():
            same[key] = value
        return same
    try:
        made: Mapping[Any, Any] = type(values)(mapped)  # type: ignore[call-arg]
    except TypeError:  # its own arguments are others
        return mapped
    return made


def map_tensors(function: Callable[[str, Tensor], Tensor], values: Any) -> Any:
    """The same nesting with every tensor replaced by `function(path, tensor)`; None stays None.

    Raises:
        HookError: something else is in it.
    """

    def leaf(path: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(path, value)
        if value is None:
            return None
        raise HookError(
            f"{path or 'the value'} is a {type(value).__name__}, but ranks exchange tensors, in dicts, lists, tuples, "
            "named tuples and dataclasses. Make it a tensor, or use gather_objects or broadcast_object."
        )

    return map_leaves(leaf, values)
