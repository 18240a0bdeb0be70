"""Builds a model for the weights of a checkpoint, without the random numbers that they begin with.

What the model hook would fill with random numbers stays as the memory is: drawing them takes longer than reading a
checkpoint. Everything that is computed from such values is followed to where it ends up. If that is anywhere but in
tensors of the model's state, all of which a checkpoint replaces, or if the hook asks for a value, the model is built
once more, as always.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Buffer, Module, Parameter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FILLS = {
    f"aten::{name}_" for name in ("uniform", "normal", "random", "exponential", "log_normal", "cauchy", "geometric")
}
"""Functions that overwrite a tensor with random numbers, whatever it held."""
READERS = {
    *("numpy", "__array__", "tolist", "data_ptr", "__dlpack__", "__deepcopy__", "__reduce_ex__"),
    *("storage", "_typed_storage", "untyped_storage"),
}
"""Methods that give access to a tensor's memory without an operation of torch."""
PLAIN = (Tensor, Parameter, Buffer)


def build_unset(build_model: Callable[[], Module]) -> Module:
    """Build a model whose whole state a checkpoint replaces before it is used; its random weights have no values.

    Args:
        build_model: seeds the random numbers, and returns the model. Called a second time if values are needed.
    """
    draws = _LeavesOutDraws()
    try:
        with draws, _SeesReaders(draws.unset):
            model = build_model()
        if draws.unset.are_in_state(model):
            return model
    except Exception:  # noqa: BLE001  a user's function may raise anything of values that mean nothing; below it is right
        pass
    return build_model()


class _ValueNeededError(Exception):
    """The model hook asks for a value that was left out."""


@final
class _Unset:
    """The memory whose values depend on those that were left out."""

    def __init__(self) -> None:
        self._storages: dict[int, StorageWeakRef] = {}  # a weak reference keeps its key from being used again

    def __bool__(self) -> bool:
        return bool(self._storages)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, Tensor) and type(value) in PLAIN and value.untyped_storage()._cdata in self._storages

    def add(self, tensors: Iterable[Any]) -> None:
        """Note what was left out, or computed from it."""
        for tensor in tensors:
            if type(tensor) not in PLAIN:  # memory may be anywhere behind a tensor of another class
                raise _ValueNeededError
            storage = tensor.untyped_storage()
            if storage._cdata not in self._storages:
                self._storages[storage._cdata] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]

    def are_in_state(self, model: Module) -> bool:
        """Whether all of this memory that is still in use is that of whole tensors of the model's state."""
        state = [one for one in model.state_dict(keep_vars=True).values() if type(one) in PLAIN]
        storages = [(one.untyped_storage(), one.nbytes) for one in state]
        whole = {storage._cdata for storage, size in storages if storage.nbytes() == size}
        return all(one in whole or reference.expired() for one, reference in self._storages.items())  # type: ignore[no-untyped-call]


@final
class _LeavesOutDraws(TorchDispatchMode):
    """Leaves tensors as they are that would be filled with random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unset = _Unset()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch excludes the method below from compiled graphs, for which it would import its compiler."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Run the operation, and note what it makes of values that were left out."""
        kwargs = kwargs or {}
        # A generator of the hook's own may be used again later, so it has to draw.
        draws = torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None
        if draws and func._schema.name in FILLS:
            self.unset.add(args[:1])
            return args[0]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        depends = (draws and bool(self.unset)) or any(one in self.unset for one in given)
        result = func(*args, **kwargs)
        if depends:
            self.unset.add(_outputs(func, result, given))
        return result


def _outputs(func: Any, result: Any, given: Sequence[Tensor]) -> Iterable[Any]:
    """Tensors that an operation has made or changed. A number is an error: Python may decide by it."""
    if func._schema.is_mutable:
        yield from given
    yield from (leaf for leaf in tree_leaves(result) if leaf is not None)


@final
class _SeesReaders(TorchFunctionMode):
    """Raises if the model hook reads memory that has no values."""

    def __init__(self, unset: _Unset) -> None:
        super().__init__()
        self._unset = unset

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the function."""
        if getattr(func, "__name__", "") in READERS and args and args[0] in self._unset:
            raise _ValueNeededError
        return func(*args, **(kwargs or {}))
