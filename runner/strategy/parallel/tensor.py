"""Tensor parallelism (Shoeybi et al. 2019) and sequence parallelism (Korthikanti et al. 2022), by torch's styles."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import Placement
from torch.nn import Module, Parameter

from runner.model.local_part import local_part
from runner.strategy.parallel.packed import Packed, in_rank_order
from runner.strategy.parallel.sequence import SEQUENCE, SequenceParts
from runner.strategy.parallel.stand_in import is_elsewhere
from runner.strategy.parallel.styles import (
    Planned,
    Style,
    attributes,
    is_transposed,
    matching,
    output_dim,
    plan_of,
    planned,
    tied_parameters,
)


@final
class TensorPlan:
    """A plan, applied to one model."""

    def __init__(self, plan: Mapping[str, str], mesh: DeviceMesh, *, sequence_parallel: bool) -> None:
        """Hold a plan for the ranks of a mesh.

        Args:
            plan: styles by pattern; empty = the model's own plan.
            mesh: the tensor ranks.
            sequence_parallel: activations between split modules are split by sequence.
        """
        self._plan = plan
        self._mesh = mesh
        self._sequence_parallel = sequence_parallel
        self._packed: dict[str, dict[str, int]] = {}
        self._has_loss_parallel = False

    def apply(self, model: Module) -> None:
        """Split the model's weights in place. Without communication: every rank has the same weights.

        The plan has been checked by `plan_faults`.
        """
        lines = {pattern: planned(text) for pattern, text in plan_of(model, self._plan).items()}
        tied = [places for places in tied_parameters(model).values() if len(places) > 1]
        for pattern, line in lines.items():
            if line.style is Style.DIVIDE:
                for module, attribute in attributes(model, pattern):
                    setattr(module, attribute, getattr(module, attribute) // self._mesh.size())
                continue
            for name, module in list(matching(model, pattern)):
                if is_elsewhere(module):
                    continue
                if line.parts > 1:
                    self._pack(name, module, line.parts)
                if isinstance(module, nn.Embedding):
                    module.register_forward_pre_hook(_PartsOfGradients())
                parallelize_module(module, self._mesh, self._style(line, module), src_data_rank=None)
                module.register_forward_hook(_completed)
        self._has_loss_parallel = any(line.style is Style.COLWISE_LOSS_PARALLEL for line in lines.values())
        for first, *others in tied:
            shared = model.get_parameter(first)
            for name in others:
                owner, _, key = name.rpartition(".")
                model.get_submodule(owner).register_parameter(key, shared)

    @property
    def sequence(self) -> SequenceParts | None:
        """How activations between split modules are split; None if they are whole."""
        return SequenceParts(self._mesh) if self._sequence_parallel else None

    def outputs(self, model: Module) -> Iterator[tuple[Module, bool]]:
        """The modules of the plan, and whether with sequence_parallel the output of each is split by sequence."""
        for pattern, text in plan_of(model, self._plan).items():
            style = planned(text).style
            if style is not Style.DIVIDE:
                split = style in (Style.ROWWISE, Style.SEQUENCE, Style.REPLICATE)
                for _, module in matching(model, pattern):
                    yield module, split or (style is Style.COLWISE_GATHER_OUTPUT and isinstance(module, nn.Embedding))

    def as_stored(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of a parameter (itself, or one of its optimizer) as checkpoints store it."""
        layout = self._packed.get(name)
        return Packed(tensor, **layout) if layout and isinstance(tensor, DTensor) else tensor

    def computing(self) -> AbstractContextManager[Any]:
        """The context of every forward and backward."""
        return loss_parallel() if self._has_loss_parallel else nullcontext()

    def _pack(self, name: str, module: Module, parts: int) -> None:
        """Put the rows of a module's weights in the order of the ranks."""
        dim, ranks = output_dim(module), self._mesh.size()
        for key, parameter in module.named_parameters(recurse=False):
            along = 0 if parameter.ndim == 1 else dim
            with torch.no_grad():
                parameter.copy_(in_rank_order(parameter, dim=along, parts=parts, ranks=ranks))
            self._packed[f"{name}.{key}"] = {"dim": along, "parts": parts, "ranks": ranks}

    def _style(self, line: Planned, module: Module) -> ParallelStyle:
        between: Placement = Shard(SEQUENCE) if self._sequence_parallel else Replicate()
        local = not self._sequence_parallel
        match line.style:
            case Style.COLWISE:
                return _Colwise(input_layouts=between)
            case Style.COLWISE_GATHER_OUTPUT:
                is_embedding = isinstance(module, nn.Embedding)
                given, made = (Replicate(), between) if is_embedding else (between, Replicate())
                use_local_output = local or not is_embedding
                return _Colwise(input_layouts=given, output_layouts=made, use_local_output=use_local_output)
            case Style.COLWISE_LOSS_PARALLEL:
                return _Colwise(input_layouts=between, use_local_output=False)
            case Style.ROWWISE:
                given = Replicate() if isinstance(module, nn.Embedding) else Shard(-1)
                return _Rowwise(input_layouts=given, output_layouts=between, use_local_output=local)
            case Style.SEQUENCE:
                return SequenceParallel(sequence_dim=SEQUENCE) if self._sequence_parallel else _Untouched()
            case _:
                return _Replicated(between) if self._sequence_parallel else _Untouched()


@final
class _Colwise(ColwiseParallel):
    """torch's style, which knows Linear and Embedding, also for layers that keep their weight [inputs, outputs]."""

    def _apply(self, module: Module, device_mesh: DeviceMesh) -> Module:
        if not is_transposed(module):
            return super()._apply(module, device_mesh)
        return _apply_to_transposed(self, (Replicate(),), module, device_mesh, weight=Shard(1), bias=Shard(0))


@final
class _Rowwise(RowwiseParallel):
    """torch's style, also for layers that keep their weight [inputs, outputs]."""

    def _apply(self, module: Module, device_mesh: DeviceMesh) -> Module:
        if not is_transposed(module):
            return super()._apply(module, device_mesh)
        return _apply_to_transposed(self, (Shard(-1),), module, device_mesh, weight=Shard(0), bias=Replicate())


def _apply_to_transposed(
    style: Any, wanted: tuple[Placement], module: Module, mesh: DeviceMesh, *, weight: Placement, bias: Placement
) -> Module:
    """What the styles of torch do to a linear layer, with these placements of its parameters.

    Args:
        style: a ColwiseParallel or RowwiseParallel.
        wanted: the placement of inputs that the layer computes with.
    """
    given, made, use_local = style.input_layouts, style.output_layouts, style.use_local_output
    return distribute_module(
        module,
        mesh,
        lambda _, module, mesh: split_parameters(module, mesh, weight=weight, bias=bias),
        lambda module, inputs, mesh: style._prepare_input_fn(given, wanted, module, inputs, mesh),
        lambda module, outputs, mesh: style._prepare_output_fn(made, use_local, module, outputs, mesh),
    )


@final
class _Replicated(ParallelStyle):
    """A module that is whole on every rank and whose output is split by sequence."""

    def __init__(self, made: Placement) -> None:
        super().__init__()
        self._made = (made,)

    def _apply(self, module: Module, device_mesh: DeviceMesh) -> Module:
        def whole(_: Any, inputs: Any, mesh: DeviceMesh) -> Any:
            return tuple(
                DTensor.from_local(one, mesh, [Replicate()], run_check=False)
                if isinstance(one, Tensor) and not isinstance(one, DTensor)
                else one
                for one in inputs
            )

        return distribute_module(
            module, device_mesh, None, whole, lambda _, output, mesh: output.redistribute(placements=self._made)
        )


@final
class _Untouched(ParallelStyle):
    """A module that computes the same on every rank."""

    def _apply(self, module: Module, device_mesh: DeviceMesh) -> Module:
        return module


def _completed(module: Module, args: Any, output: Any) -> Tensor | None:
    """Wait for an output whose sum is under way: torch 2.13 loses its gradient where it enters a compiled block."""
    return cast("Tensor", _Waited.apply(output)) if isinstance(output, AsyncCollectiveTensor) else None  # type: ignore[no-untyped-call]


class _Waited(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: AsyncCollectiveTensor) -> Tensor:
        return cast("Tensor", output.trigger_wait())  # type: ignore[no-untyped-call]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@final
class _PartsOfGradients:
    """Keeps no more of a gradient than of its weight: torch's backward of a lookup returns that of the whole one."""

    def __init__(self) -> None:
        self._weight: Tensor | None = None

    def __call__(self, module: Module, args: Any) -> None:
        """Before a lookup: the weight has been moved or gathered by now, and is another one than the plan split."""
        weight = module.weight
        if torch.compiler.is_compiling() or weight is self._weight:
            return
        if not isinstance(weight, DTensor) or not weight.requires_grad:
            return
        self._weight, placements = weight, weight.placements

        def part(gradient: Tensor) -> Tensor:
            whole = isinstance(gradient, DTensor) and all(one.is_replicate() for one in gradient.placements)
            return cast("DTensor", gradient).redistribute(placements=placements) if whole else gradient

        weight.register_hook(part)  # type: ignore[no-untyped-call]


def split_parameters(module: Module, mesh: DeviceMesh, *, weight: Placement, bias: Placement) -> None:
    """Split a module's own parameters in place, without communication; a bias is what has one dimension."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        placement = bias if parameter.ndim == 1 else weight
        split = distribute_tensor(parameter, mesh, [placement], src_data_rank=None)
        module.register_parameter(name, Parameter(split, requires_grad=parameter.requires_grad))


@torch.no_grad()
def parts_of_gradients(parameters: Sequence[Parameter]) -> list[Tensor]:
    """This rank's part of each gradient, as a plain tensor. Collective over tensor ranks.

    Completes, in place, the sums over tensor ranks that a backward left open.
    """
    for parameter in parameters:
        gradient = parameter.grad
        if isinstance(gradient, DTensor) and gradient.placements != cast("DTensor", parameter).placements:
            placements = cast("DTensor", parameter).placements
            parameter.grad = cast("Tensor", gradient.redistribute(placements=placements))
    return [local_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
