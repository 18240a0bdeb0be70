"""Batches as bytes and a description, for other ranks. Nothing is pickled.

A message is the length of its description (8 bytes), the description (JSON), and the bytes of its tensors.
"""

import dataclasses
import importlib
import json
import re
from collections.abc import Mapping
from typing import Any, final

import numpy
import torch
from torch import Tensor

from runner.errors import DataError
from runner.world.nested import NamedFields, contents

__all__ = ["packed_message", "unpacked_message"]

ALIGNMENT = 64
"""Bytes at whose multiples tensors begin, so that they can be read where they are."""
PLAIN = (type(None), bool, int, float, str)
BEFORE = re.compile(r"^micro_batches\.\d+\.batch\.?")
"""Where a batch is in a step."""
WAY_OUT = (
    "Rank 0 can send tensors, arrays, numbers, text and None, in lists, tuples, named tuples, mappings and "
    "dataclasses. Let collate return those, or use loader.source=each_rank."
)


def packed_message(value: Any) -> Tensor:
    """A nested value as bytes: uint8 [n].

    Raises:
        DataError: something in it cannot be sent.
    """
    tensors = _Tensors()
    described = json.dumps([_described(value, tensors, ""), tensors.places]).encode()
    start = _aligned(8 + len(described))
    message = torch.zeros(start + tensors.size, dtype=torch.uint8)
    message[:8] = torch.tensor([len(described)]).view(torch.uint8)
    message[8 : 8 + len(described)] = torch.frombuffer(bytearray(described), dtype=torch.uint8)
    for tensor, (first, _, _) in zip(tensors.tensors, tensors.places, strict=True):
        plain = tensor.flatten().view(torch.uint8)
        message[start + first : start + first + len(plain)] = plain
    return message


def unpacked_message(message: Tensor) -> Any:
    """The value that `packed_message` got. Its tensors are views of the message."""
    length = int(message[:8].view(torch.int64))
    described, places = json.loads(message[8 : 8 + length].numpy().tobytes())
    start = _aligned(8 + length)
    tensors = []
    for first, dtype, shape in places:
        kind: torch.dtype = vars(torch)[dtype]
        end = start + first + kind.itemsize * int(numpy.prod(shape, dtype=numpy.int64))
        tensors.append(message[start + first : end].view(kind).reshape(shape))
    return _rebuilt(described, tensors)


def _aligned(place: int) -> int:
    return -(-place // ALIGNMENT) * ALIGNMENT


@final
class _Tensors:
    """The tensors of a value, and where their bytes are."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.places: list[tuple[int, str, list[int]]] = []
        """First byte, dtype and shape of each."""
        self.size = 0

    def add(self, tensor: Tensor) -> int:
        """Its number."""
        self.places.append((self.size, str(tensor.dtype).removeprefix("torch."), [*tensor.shape]))
        self.tensors.append(tensor.detach().cpu().contiguous())
        self.size = _aligned(self.size + self.tensors[-1].nbytes)
        return len(self.tensors) - 1


def _described(value: Any, tensors: _Tensors, path: str) -> list[Any]:
    """What is at a place, with numbers for tensors."""
    kind = type(value)
    if kind in PLAIN:
        return ["value", value]
    if kind is Tensor and value.layout is torch.strided:
        return ["tensor", tensors.add(value)]
    if isinstance(value, numpy.ndarray | numpy.generic) and value.dtype.kind in "biufc":
        native = numpy.array(value, dtype=value.dtype.newbyteorder("="))
        return ["array" if isinstance(value, numpy.ndarray) else "scalar", tensors.add(torch.from_numpy(native))]
    found = contents(value)
    if found is None or (not isinstance(value, Mapping | list | tuple) and _has_more(value)):
        raise DataError(f"loader.source=rank_0: {_where(path)} is a {kind.__name__}, which cannot be sent. {WAY_OUT}")
    inside = [(name, _described(one, tensors, f"{path}.{name}" if path else str(name))) for name, one in found]
    if kind is list or kind is tuple:
        return [kind.__name__, [one for _, one in inside]]
    if isinstance(value, Mapping):
        pairs = [[_described(key, tensors, path), one] for key, one in inside]
        return ["dict", pairs] if kind is dict else ["mapping", _name(kind, path), pairs]
    if isinstance(value, list | tuple):
        return [
            "named" if isinstance(value, NamedFields) else "sequence",
            _name(kind, path),
            [one for _, one in inside],
        ]
    return ["dataclass", _name(kind, path), inside]


def _has_more(value: Any) -> bool:
    """Whether a dataclass has attributes beside its fields."""
    slots_alone = not hasattr(value, "__dict__")
    return not slots_alone and bool(vars(value).keys() - {field.name for field in dataclasses.fields(value)})


def _where(path: str) -> str:
    inside = BEFORE.sub("", path)
    return f"{inside} of the batch" if inside else "the batch"


def _name(kind: type, path: str) -> str:
    """Where other ranks find a class."""
    name = f"{kind.__module__}:{kind.__qualname__}"
    try:
        found = _class(name)
    except (AttributeError, ImportError):
        found = None
    if found is not kind:
        raise DataError(
            f"loader.source=rank_0: {_where(path)} is a {kind.__qualname__}, whose class other ranks do not find as "
            f"{name}. Define it at the top of a module, or use loader.source=each_rank."
        )
    return name


def _class(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _rebuilt(described: list[Any], tensors: list[Tensor]) -> Any:
    kind, *rest = described
    last = rest[-1]
    if kind == "value":
        return last
    if kind in ("tensor", "array", "scalar"):
        return tensors[last] if kind == "tensor" else tensors[last].numpy()[() if kind == "scalar" else ...]
    if kind == "dataclass":
        made = object.__new__(_class(rest[0]))
        for name, one in last:
            object.__setattr__(made, name, _rebuilt(one, tensors))
        return made
    if kind in ("dict", "mapping"):
        pairs = {_rebuilt(key, tensors): _rebuilt(one, tensors) for key, one in last}
        return pairs if kind == "dict" else _class(rest[0])(pairs)
    found = [_rebuilt(one, tensors) for one in last]
    if kind == "list":
        return found
    if kind == "tuple":
        return tuple(found)
    return _class(rest[0])(*found) if kind == "named" else _class(rest[0])(found)
