"""A tensor that is not here: what a stage of a pipeline sees in place of what other stages compute.

The loss hook and the model's own forward run on every stage, from their beginning. What comes before a stage, and is
not here, is an `Absent`: it has a shape and a dtype, but no values, and whatever is computed from it is absent as well.
So nothing that is not here can be mistaken for a number. Where a stage begins, the tensors that the stage before has
sent take the place of those that are absent, wherever the model's forward holds them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
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
from runner.strategy.parallel.carried import Draws, Origin, Progress, origin_of

_PLAIN = frozenset({Tensor, Parameter, type(None), bool, int, float, str})
"""Types of values that are no Absent and hold none."""


class Finished(BaseException):
    """The last stage needs values: what follows is not seen."""


@final
class Absent(Tensor):
    """A tensor without values, by torch's FakeTensor."""

    fake: FakeTensor
    trained: bool
    """Whether a gradient flows through it."""
    held: frozenset[int] | None
    """The stages that could know its values; None where nobody asks."""
    progress: Progress | None
    """Of the run that it belongs to; None where nobody asks."""
    origin: Origin
    """How other stages could know its values."""
    is_split: bool
    """Whether ranks have parts of it, split by sequence."""
    arrived: Tensor | None
    """The tensor that has taken its place."""

    @staticmethod
    def of(
        fake: FakeTensor,
        *,
        trained: bool,
        held: frozenset[int] | None = None,
        where: Progress | None = None,
        origin: Origin = "",
        is_split: bool = False,
    ) -> "Absent":
        """An absent tensor with this shape, dtype and device."""
        absent: Absent = Tensor._make_wrapper_subclass(
            Absent, tuple(fake.shape), strides=fake.stride(), dtype=fake.dtype, device=fake.device
        )
        absent.fake, absent.trained, absent.held, absent.progress = fake, trained, held, where
        absent.origin, absent.is_split, absent.arrived = origin, is_split, None
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
        return _by_shapes(func, leaves, absent, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(f"{func}: an Absent has no values; functions of torch see it before they get here.")


def _by_shapes(func: Any, leaves: list[Tensor], absent: "list[Absent]", args: Any, kwargs: Any) -> Any:
    """What a function returns, as far as shapes go."""
    name = getattr(func, "__name__", str(func))
    where = next((one.progress for one in absent if one.progress is not None), None)
    if name != "__get__":
        _check_written(name, args, kwargs)
        _check_held(name, absent, where)
    # Whatever the grad mode: the forward of an autograd.Function runs without. A gradient that nobody needs is 0.
    trained = any(one.trained if isinstance(one, Absent) else one.requires_grad for one in leaves)
    fakes = {id(one.fake): one for one in absent}
    is_split = any(one.is_split for one in absent)
    versions = [one.fake._version for one in absent]
    draws = Draws()
    args, kwargs = tree_map(_for_shapes, (args, kwargs))
    try:
        with torch.no_grad(), nullcontext() if where is None else draws:
            result = _WITHOUT_VALUES.get(func, func)(*args, **kwargs)
    except Exception as error:
        if where is not None and where.is_last:  # which has the values: what comes of the loss need not have a shape
            raise Finished from None
        if not isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
            raise
        raise HookError(
            f"{name} needs the values of a tensor that another stage of the pipeline computes: control flow "
            "cannot cross stages. Let the stages begin elsewhere (strategy.split), or use strategy.pipeline=1."
        ) from error
    held: frozenset[int] | None = None
    origin: Origin = ""
    if where is not None:
        held, origin = frozenset({where.stage}), origin_of([one.origin for one in absent], where, drawn=draws.any)
        changed = (one for one, version in zip(absent, versions, strict=True) if one.fake._version != version)
        where.note_changed((one.origin for one in changed), name)

    def back(value: Any) -> Any:
        if not isinstance(value, FakeTensor):
            return value
        if id(value) in fakes:
            return fakes[id(value)]  # in place, or the tensor itself
        needs = trained and value.is_floating_point()
        return Absent.of(value, trained=needs, held=held, where=where, origin=origin, is_split=is_split)

    return tree_map(back, result)


def present(values: Any) -> Any:
    """The values, with those absent tensors replaced whose place another has taken."""
    if not _any_absent(values):
        return values
    return tree_map(
        lambda leaf: leaf.arrived if isinstance(leaf, Absent) and leaf.arrived is not None else leaf, values
    )


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
    members: Iterable[Any] = (
        values if isinstance(values, tuple | list) else values.values() if isinstance(values, dict) else (values,)
    )
    for one in members:
        kind = type(one)
        if kind in _PLAIN:
            continue
        if kind is Absent:
            return True
        if isinstance(one, tuple | list | dict):
            if _any_absent(one):
                return True
        elif any(isinstance(leaf, Absent) for leaf in tree_leaves(one)):
            return True
    return False


@final
class AllParameters:
    """Lets a hook that looks at all parameters (to add their norms, say) see that some are not here."""

    def __init__(self, model: Module) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._model.__dict__["named_parameters"] = self._named

    def __exit__(self, *error: object) -> None:
        del self._model.__dict__["named_parameters"]

    def _named(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Iterator[Any]:
        yield from Module.named_parameters(self._model, prefix, recurse, remove_duplicate)
        for name, module in self._model.named_modules(prefix=prefix):
            for key, value in vars(module).items():
                if isinstance(value, Absent):
                    yield f"{name}.{key}" if name else key, value


def is_elsewhere(module: Module) -> bool:
    """Whether a module's own parameters are those of another stage."""
    has_own = any(parameter is not None for parameter in module._parameters.values())  # a bias that is off is None
    return not has_own and any(isinstance(one, Absent) for one in vars(module).values())


def fake_of(mode: FakeTensorMode, tensor: Tensor, device: torch.device) -> FakeTensor:
    """A tensor with this shape and dtype, without values, as if it were on that device."""
    with mode:
        fake: FakeTensor = torch.empty_strided(  # type: ignore[assignment]
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device
        )
    return fake


def _grouped_mm(mat_a: Tensor, mat_b: Tensor, **kwargs: Any) -> Tensor:
    """The shape of a product of groups of rows, also in fp32: torch 2.13's kernel without values takes bf16 only."""
    if mat_a.dtype == torch.bfloat16 or (mat_a.ndim, mat_b.ndim) != (2, 3):
        return torch._grouped_mm(mat_a, mat_b, **kwargs)
    dtype = kwargs.get("out_dtype") or mat_a.dtype
    return (mat_a @ mat_b[0]).to(dtype)


_WITHOUT_VALUES: dict[Any, Callable[..., Any]] = {torch._grouped_mm: _grouped_mm}
"""What is run in place of functions that refuse without values what they take with values."""


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


def _check_held(name: str, absent: Iterable[Absent], where: Progress | None) -> None:
    """Let what this stage does not know be carried to it.

    Raises:
        HookError: it cannot be.
    """
    for one in absent:
        if where is not None and one.held is not None and where.stage not in one.held:
            stages = " and ".join(map(str, sorted(one.held)))
            where.need(
                one.origin,
                f"{name} on stage {where.stage} of the pipeline takes a tensor {list(one.fake.shape)} that stage "
                f"{stages} has",
            )
