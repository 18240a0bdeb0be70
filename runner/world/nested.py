"""Nested values: tensors in dicts, lists, tuples, named tuples and dataclasses."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from runner.errors import HookError

__all__ = ["map_tensors"]


@runtime_checkable
class NamedFields(Protocol):
    """A named tuple."""

    _fields: tuple[str, ...]


def map_tensors(function: Callable[[str, Tensor], Tensor], values: Any, path: str = "") -> Any:
    """The same nesting with every tensor replaced by `function(path, tensor)`; None stays None.

    Args:
        path: of `values`, for messages: features.image.

    Raises:
        HookError: something else is in it.
    """

    def inner(name: object, value: Any) -> Any:
        return map_tensors(function, value, f"{path}.{name}" if path else str(name))

    if isinstance(values, Tensor):
        return function(path, values)
    if values is None:
        return None
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        fields = [field.name for field in dataclasses.fields(values) if field.init]
        return dataclasses.replace(values, **{name: inner(name, getattr(values, name)) for name in fields})
    if isinstance(values, Mapping):
        return {key: inner(key, value) for key, value in values.items()}
    if isinstance(values, tuple) and isinstance(values, NamedFields):
        named = zip(values._fields, values, strict=True)
        return type(values)(*(inner(name, value) for name, value in named))
    if isinstance(values, list | tuple):
        return type(values)(inner(index, value) for index, value in enumerate(values))
    raise HookError(
        f"{path or 'the value'} is a {type(values).__name__}, but ranks exchange tensors, in dicts, lists, tuples, "
        "named tuples and dataclasses. Make it a tensor, or use gather_objects or broadcast_object."
    )
