"""A model of which every rank holds a part, along several axes, and its training step."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module, Parameter
from torch.nn.utils import get_total_norm

from runner.protocols import (
    Axis,
    Builder,
    MicroBatch,
    MicroBatchLoss,
    SavedState,
    State,
    StepBatches,
    StepLoss,
    World,
)
from runner.strategy.common.around import Around
from runner.strategy.common.gradients import Gradients
from runner.strategy.common.module_trainable import ModuleTrainable, Rounds
from runner.strategy.fsdp.trainable import PlacedShards
from runner.strategy.parallel.sizes import axes_in
from runner.strategy.parallel.tensor import parts_of_gradients

if TYPE_CHECKING:
    from runner.strategy.parallel.pipeline import PlacedStages

PARTS = (Axis.PIPELINE, Axis.SHARD, Axis.EXPERT, Axis.CONTEXT, Axis.TENSOR)
"""The axes along which the ranks hold different parts of the parameters that they train together."""


def on_one_stage(parameter: Tensor) -> int:
    """Each parameter is on one rank of a pipeline."""
    return 1


@final
class PlacedParts:
    """A model that is split among ranks: its weight matrices by a tensor plan, what is left by shards."""

    def __init__(
        self, shards: "PlacedShards | PlacedStages", computing: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        """Hold a model that is already split.

        Args:
            shards: the model; without units if there is nothing to share. Or the stages of a pipeline.
            computing: the context of every forward and backward.
        """
        self.shards = shards
        self.computing = computing

    @property
    def models(self) -> Mapping[str, Module]:
        """The one model."""
        return self.shards.models

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """Call the loss hook; ranks of one tensor group get the same losses."""
        losses = self.shards.evaluate(micro_batches)
        while True:
            with self.computing():  # not around the yield: what the caller does in between is none of its business
                loss = next(losses, None)
            if loss is None:
                return
            yield loss

    def state_dict(self) -> State[Tensor]:
        """This rank's parts."""
        return self.shards.state_dict()

    def load_state_dict(self, saved: SavedState) -> None:
        """Load this rank's parts."""
        self.shards.load_state_dict(saved)


@final
class PartsTrainable(Around):
    """ModuleTrainable's step, over this rank's part of each gradient."""

    def __init__(
        self,
        placed: PlacedParts,
        builder: Builder,
        world: World,
        *,
        no_sync: Callable[[], AbstractContextManager[Any]],
        rounds: Rounds | None = None,
        holders: Callable[[Tensor], int] = on_one_stage,
    ) -> None:
        """Start from step 0.

        Args:
            no_sync: a context in which backward does not complete the reduction of gradients.
            rounds: takes micro-batches through the stages of a pipeline; None if there are none.
            holders: how many ranks of a pipeline have a parameter.
        """
        parts = world.along(*PARTS)
        module = ModuleTrainable(
            placed.shards.module,
            builder,
            world,
            no_sync=no_sync,
            gradients=Gradients(
                of=parts_of_gradients,
                norm=lambda gradients, parameters: norm_over_parts(gradients, parameters, parts, holders),
                found_inf=lambda found: parts.sum(found.to(parts.device)),
            ),
            rounds=rounds,
        )
        super().__init__(module)
        self._placed = placed
        self._stages = world.along(Axis.PIPELINE)

    def forward_backward(self, batches: StepBatches) -> StepLoss:
        """Forward and backward of every micro-batch; leaves this rank's part of the summed gradients."""
        self._placed.shards.sync_buffers()
        with self._placed.computing():
            return super().forward_backward(batches)

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """Evaluate the placed model."""
        return self._placed.evaluate(micro_batches)

    def state_dict(self) -> State[Tensor]:
        """Model and optimizer by the model's parameter names; tensors are this rank's parts."""
        self._placed.shards.reshard()
        state = super().state_dict()
        numbers = state.values["optimizer"]["numbers"]
        for of_stage in self._stages.gather_objects(numbers):  # values are the same on every rank
            numbers |= of_stage
        return state

    def load_state_dict(self, saved: SavedState) -> None:
        """Continue from a checkpoint; each rank reads its own parts."""
        self._placed.shards.reshard()
        super().load_state_dict(saved)


@torch.no_grad()
def norm_over_parts(
    gradients: Sequence[Tensor],
    parameters: Sequence[Parameter],
    parts: World,
    holders: Callable[[Tensor], int] = on_one_stage,
) -> Tensor:
    """The 2-norm of the full gradient. Collective over the ranks that hold parts.

    The square of each part is divided by the number of ranks that hold the same one, so that one sum counts it once.
    """
    of_copies: dict[int, list[Tensor]] = {}
    with_gradient = (parameter for parameter in parameters if parameter.grad is not None)
    for gradient, parameter in zip(gradients, with_gradient, strict=True):
        of_copies.setdefault(_copies(parameter, parts) * holders(parameter), []).append(gradient)
    squares = [get_total_norm(group).square() / copies for copies, group in of_copies.items()]
    own = torch.stack(squares).sum() if squares else torch.zeros(())
    return parts.sum(own.to(parts.device)).sqrt().to(own.device)


def _copies(parameter: Parameter, parts: World) -> int:
    """How many of the ranks that hold parts hold the same part of this parameter."""
    stages = parts.axes.size([Axis.PIPELINE])  # each has parameters of its own
    if not isinstance(parameter, DTensor):
        return parts.size // stages
    names = parameter.device_mesh.mesh_dim_names or ()
    split = [name for name, one in zip(names, parameter.placements, strict=True) if not one.is_replicate()]
    return parts.size // stages // parts.axes.size([axis for name in split for axis in axes_in(name)])
