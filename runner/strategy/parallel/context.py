"""Context parallelism: ranks compute different parts of the same sequences.

From the first block on, activations are DTensors that are divided by sequence. Their shape is that of the whole, so
that whatever the model or the loss hook computes from it (positions, masks, means) is what one process computes; torch
moves values between ranks where an operation needs them. Attention divides heads among ranks instead, or is ring
attention, and layers that treat each position by itself see this rank's part as a plain tensor.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.eval_frame import skip_code
from torch.autograd.graph import _engine_run_backward
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.experimental import implicit_replication
from torch.nn import Module
from torch.overrides import TorchFunctionMode

from runner.errors import HookError
from runner.protocols import Loss
from runner.strategy.parallel.balance import in_order
from runner.strategy.parallel.context_blocks import context_blocks
from runner.strategy.parallel.expert_modules import expert_modules
from runner.strategy.parallel.parts import of_part, on_own_tokens, part_of, replicated, summed
from runner.strategy.parallel.ring import attention, ring_attention, scaled_dot_product_attention
from runner.strategy.parallel.sequence import SEQUENCE, SequenceParts
from runner.strategy.parallel.styles import is_transposed
from runner.strategy.parallel.whole_loss import Hook, whole_result

ACTIVATION_DIMS = 3
_LISTS = (list, tuple)
_MAY_BE_DIVIDED = (DTensor, *_LISTS)


@final
class ContextPlan:
    """How the sequences in one model are divided among ranks."""

    def __init__(self, mesh: DeviceMesh, classes: Sequence[str], experts: Sequence[str]) -> None:
        """Hold a plan.

        Args:
            mesh: the ranks that sequences are divided among.
            classes: of blocks; empty = those that the model names, or else members of its lists of modules.
            experts: patterns of the names of modules that hold experts; empty = those of `runner.model.experts`.
        """
        self._mesh, self._classes, self._experts = mesh, classes, experts
        self._computing = False
        self._has_divided = False

    @property
    def sequence(self) -> SequenceParts:
        """How activations pass between the stages of a pipeline."""
        return SequenceParts(self._mesh)

    def apply(self, model: Module) -> None:
        """Divide what reaches the first block, whichever that is in the model's forward."""
        self.at_blocks(model, lambda x: self._part(x) if self._computing else x)
        for module in model.modules():
            if (num_trailing := _trailing_dims(module)) is not None:
                _OnParts(self._mesh, num_trailing).hook(module)
        for _, module in expert_modules(model, self._experts):
            module.forward = on_own_tokens(module.forward)

    def at_blocks(self, model: Module, divided: Callable[[Tensor], Tensor]) -> None:
        """Let the first activation among the arguments of each block become what `divided` makes of it."""
        for block in context_blocks(model, self._classes):
            block.register_forward_pre_hook(partial(_with_first_activation, divided), with_kwargs=True)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """The context of every forward and backward. Outside it, the model computes whole sequences on every rank."""
        with implicit_replication(), ring_attention(self._mesh), _Replicated(self._mesh):
            self._computing = True
            try:
                yield
            finally:
                self._computing = False

    def whole_loss(self, loss: Hook) -> Hook:
        """The loss hook, with plain tensors in its result: every rank has all of it, and a summand of its gradient."""

        def hook(*arguments: Any) -> Loss | Tensor:
            self._has_divided = False
            result = loss(*arguments)
            if not self._has_divided:
                raise HookError(
                    "strategy.context divides sequences where the first block begins, but the loss hook called no "
                    "block with an activation [items, length, features]. Name the classes of blocks in "
                    "blocks.classes, or use strategy.context=1."
                )
            if isinstance(result, Loss):
                return whole_result(result._replace(total=self._once(result.total)))
            return whole_result(self._once(result))

        return hook

    def _once(self, loss: Tensor) -> Tensor:
        """The same loss; of one that every rank has computed as a whole, each has a summand of the gradient only."""
        return replicated(loss, self._mesh)

    def _part(self, x: Tensor) -> Tensor:
        self._has_divided = True
        if isinstance(x, DTensor):
            return x
        length = x.shape[SEQUENCE]
        mine = in_order(length, self._mesh.size(), self._mesh.get_local_rank())
        # The gradient of what was whole is this rank's summand of it: zero outside its part.
        return of_part(x.narrow(SEQUENCE, mine.start, len(mine)), self._mesh, dim=SEQUENCE, length=length)


@final
class _Replicated(TorchFunctionMode):
    """Lets plain tensors that need a gradient meet divided ones: each rank gets a summand of the gradient."""

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__()
        self._mesh = mesh

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Most calls are what torch looks up in plain tensors: thousands in a step, so that a microsecond counts.
        for value in args:
            if isinstance(value, _MAY_BE_DIVIDED) and self._is_divided(value):
                break
        else:
            if not kwargs:
                return func(*args) if func is not Tensor.backward else self._backward(*args)
            if func is Tensor.backward:
                return self._backward(*args, **kwargs)
            if not any(map(self._is_divided, kwargs.values())):
                return func(*args, **kwargs)
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            return attention(self._mesh, *args, **kwargs)
        args = tuple(map(self._replicated, args))
        kwargs = {name: self._replicated(value) for name, value in kwargs.items()}
        exact = _EXACT.get(func)
        result = func(*args, **kwargs) if exact is None else exact(func, *args, **kwargs)
        return tuple(map(_without_summands, result)) if type(result) is tuple else _without_summands(result)

    # Compiled blocks inline it. As a frame of its own it must not be compiled: to torch 2.13's guards, func is the same
    # for x.shape and x.device.
    skip_code(__torch_function__.__code__)

    def _backward(self, *args: Any, **kwargs: Any) -> None:
        with self:  # blocks that are recomputed in it call functions, too
            _backward(*args, **kwargs)

    def _is_divided(self, value: Any) -> bool:
        if isinstance(value, DTensor):
            return value.device_mesh == self._mesh
        return isinstance(value, _LISTS) and any(map(self._is_divided, value))

    def _replicated(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(self._replicated, value)) if type(value) in (list, tuple) else value
        return replicated(value, self._mesh) if isinstance(value, Tensor) else value


@final
class _OnParts:
    """Hooks of a module that treats positions alike: it gets this rank's part as a plain tensor."""

    def __init__(self, mesh: DeviceMesh, num_trailing: int) -> None:
        """Hold the hooks.

        Args:
            num_trailing: the last dimensions that the module computes over.
        """
        self._mesh = mesh
        self._num_trailing = num_trailing
        self._divided: tuple[int, int] | None = None

    def hook(self, module: Module) -> None:
        """Register the hooks around those that a tensor plan has registered."""
        module.register_forward_pre_hook(self._before, prepend=True)
        module.register_forward_hook(self._after)

    def _before(self, module: Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        self._divided = None
        x = args[0] if args else None
        if not isinstance(x, DTensor) or x.device_mesh != self._mesh:
            return None
        placement = x.placements[0]
        if type(placement) is not Shard or placement.dim >= x.ndim - self._num_trailing:
            return None
        self._divided = placement.dim, x.shape[placement.dim]
        return (part_of(x), *args[1:])

    def _after(self, module: Module, args: Any, output: Any) -> Tensor | None:
        if self._divided is None:
            return None
        dim, length = self._divided
        return of_part(output, self._mesh, dim=dim, length=length)


def _backward(
    tensor: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Sequence[Tensor] | None = None,
) -> None:
    """What `Tensor.backward` does, which would leave the mode before it begins."""
    gradient = torch.ones_like(tensor) if gradient is None else gradient
    keep = create_graph if retain_graph is None else retain_graph
    _engine_run_backward(
        (tensor,), (gradient,), keep, create_graph, tuple(inputs or ()), allow_unreachable=True, accumulate_grad=True
    )


def _trailing_dims(module: Module) -> int | None:
    """How many of the last dimensions a module computes over, if it treats all others alike; None if it may not."""
    if isinstance(module, nn.Linear) or is_transposed(module):
        return 1
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return len(module.normalized_shape)
    return 0 if isinstance(module, nn.Dropout) else None


def _without_summands(result: Any) -> Any:
    """The same; what ranks have summands of is summed, since DTensor computes further with summands of any size."""
    return summed(result) if isinstance(result, DTensor) and result.placements[0].is_partial() else result


def _with_first_activation(
    divided: Callable[[Tensor], Tensor], block: Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a block, of which the first activation is divided."""
    for at, value in enumerate(args):
        if _is_activation(value):
            return (*args[:at], divided(value), *args[at + 1 :]), kwargs
    for name, value in kwargs.items():
        if _is_activation(value):
            return args, {**kwargs, name: divided(value)}
    return args, kwargs


def _is_activation(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= ACTIVATION_DIMS


def _exact_mean(
    function: Callable[..., Tensor],
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *legacy: Any,
    ignore_index: int = -100,
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    """A mean of cross-entropies as their sum over their number: ranks have unequal numbers of targets that count."""
    if reduction != "mean" or legacy or target.is_floating_point():
        return function(logits, target, weight, *legacy, ignore_index=ignore_index, reduction=reduction, **options)
    total = function(logits, target, weight, ignore_index=ignore_index, reduction="sum", **options)
    counted = target != ignore_index
    if weight is None:
        return total / counted.sum()
    return total / weight[target.where(counted, 0)].where(counted, 0).sum()


def _cat(function: Callable[..., Tensor], tensors: Sequence[Tensor], *arguments: Any, **options: Any) -> Tensor:
    """Without the empty tensors of one dimension, which torch.cat skips (a cache of keys that is empty yet)."""
    tensors = [one for one in tensors if one.ndim != 1 or one.numel()]
    return function(tensors, *arguments, **options) if len(tensors) > 1 else tensors[0].clone()


def _convolution(function: Callable[..., Tensor], x: DTensor, *arguments: Any, **options: Any) -> Tensor:
    """Of whole sequences, on every rank: DTensor's own convolutions do not exchange the borders of one dimension."""
    return function(x.redistribute(x.device_mesh, [Replicate()]), *arguments, **options)


def _dropout(function: Callable[..., Tensor], x: DTensor, *arguments: Any, **options: Any) -> Tensor:
    """Of this rank's part, by its own generator, as dropout modules do it."""
    placement = x.placements[0]
    if type(placement) is not Shard:
        return function(x, *arguments, **options)
    part = function(part_of(x), *arguments, **options)
    return of_part(part, x.device_mesh, dim=placement.dim, length=x.shape[placement.dim])


_EXACT: dict[Any, Callable[..., Tensor]] = {
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.cross_entropy: _exact_mean,
    F.dropout: _dropout,
    F.nll_loss: _exact_mean,
    torch.cat: _cat,
}
"""Functions that DTensor computes otherwise than of whole tensors."""
