"""Pipeline parallelism: stages of a model on different ranks, which pass micro-batches on to each other.

Huang et al. 2019 (GPipe), Narayanan et al. 2019 and 2021 (1F1B), Qi et al. 2023 (zero bubble).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn import ModuleList

from runner.protocols import (
    Axis,
    Builder,
    Loss,
    MicroBatch,
    MicroBatchLoss,
    SavedState,
    State,
    StepBatches,
    StepLoss,
    World,
)
from runner.strategy.common.forward_loss import check_has_gradient, forward_loss
from runner.strategy.common.placed_module import PlacedModule, evaluation_losses
from runner.strategy.parallel.call_by_call import Calls
from runner.strategy.parallel.carried import Record
from runner.strategy.parallel.outline import Hook, Outline
from runner.strategy.parallel.schedule import PipelineSettings
from runner.strategy.parallel.shared import SharedParameters
from runner.strategy.parallel.stage import Stage
from runner.strategy.parallel.stage_model import StageModel
from runner.world.seeds import seed_rank

MAX_SEED = 2**62
Works = list[dist.Work]


@final
class PlacedStages:
    """The stages of this rank, and how micro-batches go through all of them."""

    def __init__(
        self,
        module: PlacedModule,
        roots: Sequence[StageModel],
        units: Sequence[FSDPModule],
        outline: Outline,
        shared: SharedParameters,
        settings: PipelineSettings,
        builder: Builder,
        world: World,
        *,
        num_stages: int,
        sync_buffers: bool,
        trained: Mapping[str, bool],
        predict: Hook | None,
    ) -> None:
        """Hold stages that are already built.

        Args:
            module: the modules of all stages of this rank as one model, for its names.
            roots: the stages, in ascending order.
            units: what is sharded of them.
            outline: knows what passes between stages.
            shared: the parameters that other stages have as well.
            settings: the schedule.
            builder: gives the precision.
            world: all ranks of the run.
            num_stages: on all ranks.
            sync_buffers: broadcast the buffers of the first replica before each step and each evaluation.
            trained: the parameters of the whole model, and whether each requires a gradient.
            predict: evaluates instead of the loss hook, and calls the model as often as it likes; None = the loss hook.
        """
        self.module, self.shared, self.trained = module, shared, trained
        self._roots, self._units, self._outline = roots, units, outline
        self._settings, self._device = settings, world.device
        self._autocast = builder.precision.autocast(world.device.type)
        self._ranks = world.axes.size([Axis.PIPELINE])
        group = world.mesh().get_group(Axis.PIPELINE)
        self._stages = [Stage(root, root.index, num_stages, world.device, group) for root in roots]
        for stage in self._stages:
            stage.stage_index_to_group_rank = {
                index: settings.rank_of(index, self._ranks) for index in range(num_stages)
            }
        self._schedules: dict[int, Any] = {}
        self._buffers = list(module.model.buffers()) if sync_buffers else []
        self._replicas = world.along(*world.axes.data)
        self._predict = predict
        if predict is not None:
            last = settings.rank_of(num_stages - 1, self._ranks)
            Calls(roots[0].model, self._take_call, world.along(Axis.PIPELINE), last=last)

    @property
    def models(self) -> Any:
        """The modules of this rank, under the model's name."""
        return self.module.models

    def sync_buffers(self) -> None:
        """Broadcast the buffers of the first replica, if the strategy asks for it. Collective."""
        for buffer in self._buffers:
            self._replicas.broadcast(buffer)

    def reshard(self) -> None:
        """Free gathered parameters."""
        for unit in self._units:
            unit.reshard()

    def state_dict(self) -> State[Tensor]:
        """The tensors of this rank's stages."""
        self.reshard()
        return self.module.state_dict()

    def load_state_dict(self, saved: SavedState) -> None:
        """Load the tensors of this rank's stages."""
        self.reshard()
        self.module.load_state_dict(saved)

    def forward_backward(self, batches: StepBatches, weighted: Callable[[MicroBatchLoss], Tensor]) -> StepLoss:
        """Forward and backward of every micro-batch; leaves summed gradients. Collective.

        Args:
            weighted: from the loss of a micro-batch to the scalar that backward begins at.

        Returns:
            The losses of all micro-batches on the rank of the last stage, none on others; the step's count on all.
        """
        micro_batches, losses = batches.micro_batches, list[MicroBatchLoss]()
        count = torch.zeros((), device=self._device)
        seeds = _seeds(len(micro_batches) + 1)
        with self._autocast:
            records = [self._outline.of(one, training=True) for one in micro_batches]

        def compute(stage: Stage, root: StageModel, number: int, arrived: Sequence[Tensor]) -> tuple[Tensor, ...]:
            visit = root.visit(records[number], arrived, seeds[number])
            micro_batch = micro_batches[number]
            with self._autocast:
                if not root.is_last:
                    sent: tuple[Tensor, ...] = root(micro_batch, visit)
                    return sent
                losses.append(forward_loss(lambda *_: root(micro_batch, visit), micro_batch))
            if len(losses) == len(micro_batches):  # the backward of this one takes the count to the other stages
                for loss in losses:
                    count.add_(loss.count)
                count.copy_(self._replicas.sum(count))
            value = weighted(losses[-1])
            check_has_gradient(value)
            return (value,)

        for stage, root in zip(self._stages, self._roots, strict=True):
            stage.begin_step(
                lambda number, arrived, stage=stage, root=root: compute(stage, root, number, arrived),  # type: ignore[misc]
                [] if root.is_first else [record.carried[root.index - 1] for record in records],
                [] if root.is_last else [record.carried[root.index] for record in records],
                count,
            )
        self._run(len(micro_batches))
        seed_rank(seeds[-1], self._device)
        self.shared.sum_gradients()
        return StepLoss(losses, count)

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """The losses on the rank of the last stage, fillers on others. Collective."""
        self.sync_buffers()
        pending: Works = []
        seed, after = _seeds(2)

        def forward(batch: Any, items: int) -> Loss | Tensor:
            with self._autocast:
                if self._predict is not None:
                    return self._predict(self._roots[0].model, batch, items)
                micro_batch = MicroBatch(batch, items)
                return self._forward(micro_batch, self._outline.of(micro_batch, training=False), pending, seed)

        if self._predict is not None:
            seed_rank(seed, self._device)  # all stages run the hook, and draw the same
        try:
            for loss in evaluation_losses(ModuleList(self._roots), forward, micro_batches):
                yield loss if self._roots[-1].is_last else MicroBatchLoss(loss.value, 0, 0, False)
            _wait(pending)
        finally:
            seed_rank(after, self._device)
            self.reshard()

    def _take_call(self, call: MicroBatch) -> tuple[Record, Any]:
        """Take a call of the model through the stages. Collective."""
        pending: Works = []
        record = self._outline.of(call, training=False)
        result = self._forward(call, record, pending, 0)
        _wait(pending)
        return record, result if self._roots[-1].is_last else None

    def _forward(self, micro_batch: MicroBatch, record: Record, pending: Works, seed: int) -> Loss | Tensor:
        """The forward of one micro-batch through the stages of this rank, without gradients."""
        result: Any = ()
        before = -2
        for stage, root in zip(self._stages, self._roots, strict=True):
            arrived: Any = ()
            if not root.is_first:
                arrived = result
                if before != root.index - 1:
                    expected = record.carried[root.index - 1]
                    arrived = [
                        torch.empty(one.part or one.shape, dtype=one.dtype, device=self._device) for one in expected
                    ]
                    _wait(stage.start(dist.irecv, arrived, root.index - 1))
            result = root(micro_batch, root.visit(record, arrived, seed))
            before = root.index
            if not root.is_last and root.index + 1 not in [other.index for other in self._roots]:
                _wait(pending)  # the micro-batch before has been taken by now, or there would be no room for this one
                pending += stage.start(dist.isend, result, root.index + 1)
        return result if self._roots[-1].is_last else Loss(torch.zeros((), device=self._device), 0)

    def _run(self, num_micro_batches: int) -> None:
        if num_micro_batches not in self._schedules:
            self._schedules[num_micro_batches] = self._settings.build(self._stages, num_micro_batches, self._ranks)
        for stage in self._stages:
            stage.has_backward = True
        nothing: list[Any] = [()] * num_micro_batches
        self._schedules[num_micro_batches]._step_microbatches(
            nothing, [{}] * num_micro_batches, [None] * num_micro_batches, return_outputs=False
        )


def _seeds(number: int) -> list[int]:
    """Seeds of micro-batches, the same on all stages: what a hook draws before it calls the model is equal on all."""
    seeds: list[int] = torch.randint(MAX_SEED, (number,)).tolist()
    return seeds


def _wait(pending: Works) -> None:
    while pending:
        pending.pop().wait()
