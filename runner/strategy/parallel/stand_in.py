"""A tensor that is not here: what a stage of a pipeline sees in place of what other stages compute.

The loss hook and the model's own forward run on every stage, from their beginning. What comes before a stage, and is
not here, is an `Absent`: it has a shape and a dtype, but no values, and whatever is computed from it is absent as well.
So nothing that is not here can be mistaken for a number. Where a stage begins, the tensors that the stage before has
sent take the place of those that are absent, wherever the model's forward holds them.
"""

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.nn import Module, Parameter
from torch.utils._pytree import tree_leaves, tree_map

from runner.errors import HookError

_PLAIN = frozenset({Tensor, Parameter, type(None), bool, int, float, str})
"""Types of values that are no Absent and hold none."""


@final
class Where:
    """How far the forward is that all stages run."""

    def __init__(self) -> None:
        self.stage = 0


@final
class Absent(Tensor):
    """A tensor without values, by torch's FakeTensor."""

    fake: FakeTensor
    trained: bool
    """Whether a gradient flows through it."""
    held: frozenset[int] | None
    """The stages that could know its values; None where nobody asks."""
    progress: Where | None
    arrived: Tensor | None
    """The tensor that has taken its place."""

    @staticmethod
    def of(
        fake: FakeTensor, *, trained: bool, held: frozenset[int] | None = None, where: Where | None = None
    ) -> "Absent":
        """An absent tensor with this shape, dtype and device."""
        absent: Absent = Tensor._make_wrapper_subclass(
            Absent, tuple(fake.shape), strides=fake.stride(), dtype=fake.dtype, device=fake.device
        )
        absent.fake, absent.trained, absent.held, absent.progress, absent.arrived = fake, trained, held, where, None
        return absent

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Absent(shape={list(self.fake.shape)}, dtype={self.fake.dtype})"

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute with tensors that have arrived; all else only as far as shapes go."""
        kwargs = kwargs or {}
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        absent = [leaf for leaf in leaves if isinstance(leaf, Absent) and leaf.arrived is None]
        if not absent:
            args, kwargs = present((args, kwargs))
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        where = next((one.progress for one in absent if one.progress is not None), None)
        if name != "__get__":
            _check_written(name, args, kwargs)
            _check_held(name, absent, where)
        # Whatever the grad mode: the forward of an autograd.Function runs without. A gradient that nobody needs is 0.
        trained = any(one.trained if isinstance(one, Absent) else one.requires_grad for one in leaves)
        held = None if where is None else frozenset({where.stage})
        fakes = {id(one.fake): one for one in absent}

        def back(value: Any) -> Any:
            if not isinstance(value, FakeTensor):
                return value
            if id(value) in fakes:
                return fakes[id(value)]  # in place, or the tensor itself
            return Absent.of(value, trained=trained and value.is_floating_point(), held=held, where=where)

        args, kwargs = tree_map(_for_shapes, (args, kwargs))
        try:
            with torch.no_grad():
                result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise HookError(
                f"{name} needs the values of a tensor that another stage of the pipeline computes: control flow "
                "cannot cross stages. Let the stages begin elsewhere (strategy.split), or use strategy.pipeline=1."
            ) from error
        return tree_map(back, result)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(f"{func}: an Absent has no values; functions of torch see it before they get here.")


def present(values: Any) -> Any:
    """The values, with those absent tensors replaced whose place another has taken."""
    if not _any_absent(values):
        return values
    return replace_absent(values, lambda leaf: leaf if leaf.arrived is None else leaf.arrived)


def replace_absent(values: Any, change: "Callable[[Absent], Tensor]") -> Any:
    """The values, with another tensor for each Absent among their leaves, in the order of the leaves."""
    kind = type(values)
    if kind is Absent:
        return change(values)
    if kind in _PLAIN:
        return values
    if kind is tuple or kind is list:
        return kind(replace_absent(value, change) for value in values)
    if kind is dict:
        return {key: replace_absent(value, change) for key, value in values.items()}
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, Absent) else leaf, values)


def absent_leaves(values: Any) -> list[tuple[int, Absent]]:
    """The tensors in these values that are not here, with their number among all leaves."""
    if not _any_absent(values):
        return []
    return [
        (number, leaf)
        for number, leaf in enumerate(tree_leaves(values))
        if isinstance(leaf, Absent) and leaf.arrived is None
    ]


def _any_absent(values: Any) -> bool:
    """Whether there is an Absent among these values, in a tenth of the time that torch's functions over trees take."""
    kind = type(values)
    if kind in _PLAIN:
        return False
    if kind is Absent:
        return True
    if isinstance(values, tuple | list):
        return any(map(_any_absent, values))
    if isinstance(values, dict):
        return any(map(_any_absent, values.values()))
    return any(isinstance(leaf, Absent) for leaf in tree_leaves(values))


def is_elsewhere(module: Module) -> bool:
    """Whether a module's own parameters are those of another stage."""
    return not module._parameters and any(isinstance(one, Absent) for one in vars(module).values())


def fake_of(mode: FakeTensorMode, tensor: Tensor, device: torch.device) -> FakeTensor:
    """A tensor with this shape and dtype, without values, as if it were on that device."""
    with mode:
        fake: FakeTensor = torch.empty_strided(  # type: ignore[assignment]
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device
        )
    return fake


def _for_shapes(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    here = leaf if not isinstance(leaf, Absent) else leaf.fake if leaf.arrived is None else leaf.arrived
    return here.detach() if here.requires_grad else here


def _check_written(name: str, args: Any, kwargs: Any) -> None:
    """Raise HookError if values that are not here would be written into a tensor that is."""
    in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    target = args[0] if in_place and args else kwargs.get("out")
    if isinstance(target, Tensor) and not isinstance(target, Absent):
        raise HookError(
            f"{name} writes what another stage of the pipeline computes into a tensor of this one. Make a new tensor, "
            "or let the stages begin elsewhere: strategy.split."
        )


def _check_held(name: str, absent: Iterable[Absent], where: Where | None) -> None:
    """Raise HookError if this stage could not know one of them."""
    for one in absent:
        if where is not None and one.held is not None and where.stage not in one.held:
            stages = " and ".join(map(str, sorted(one.held)))
            raise HookError(
                f"{name} on stage {where.stage} of the pipeline takes a tensor {list(one.shape)} that stage {stages} "
                "has, and that is not among the arguments of the module at which the stage begins. Pass it through "
                "the blocks, or let the stages begin elsewhere: strategy.split."
            )
