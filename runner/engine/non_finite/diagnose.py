"""Finds the origin of a step's first non-finite number: the rank, the items and the module."""

from typing import NamedTuple

import torch

from runner.engine.non_finite.watch import Origin, Watch
from runner.protocols import MicroBatch, StepBatches, StepPlan, Trainable, World

SHOWN = 16  # items in a message; guard.json has all


class Finding(NamedTuple):
    """What one rank found in one micro-batch."""

    rank: int
    micro_batch: int
    """Index in the step, on that rank."""
    items: list[int] | None
    """Indices into the training dataset; None if items have no index."""
    epoch: int | None
    what: str
    """`loss` or `gradient`."""
    module: str | None
    """The first module that produced it; None = it arose outside all modules."""
    how: str
    """The origin, as part of a sentence."""

    def __str__(self) -> str:
        where = f"rank {self.rank}, micro-batch {self.micro_batch}{self._items()}"
        return f"{where}: the {self.what} is not finite; {self.how}"

    def _items(self) -> str:
        if self.items is None:
            return ""
        more = f" and {len(self.items) - SHOWN} more" if len(self.items) > SHOWN else ""
        shown = ", ".join(map(str, self.items[:SHOWN])) + more
        return f", items {shown} of the dataset (epoch {self.epoch})"


def diagnose(trainable: Trainable, batches: StepBatches, plan: StepPlan | None, world: World) -> list[Finding]:
    """Repeat forward and backward of a step, watching every module; weights do not change. Collective.

    Args:
        plan: the items of the step on this rank; None if they have no index.

    Returns:
        One finding for each rank and micro-batch with a non-finite value; the same on every rank.
    """
    local = []
    with torch.compiler.set_stance("force_eager"):  # a compiled module does not call the hooks that watch it
        for number, micro_batch in enumerate(batches.micro_batches):
            what, origin = _inspect(trainable, micro_batch, items=batches.items)
            if what:
                planned = plan.micro_batches[number] if plan is not None else None
                items, epoch = (planned.indices, planned.epoch) if planned is not None else (None, None)
                local.append(Finding(world.rank, number, items, epoch, what, origin.module, origin.how))
    return _causes([finding for findings in world.gather_objects(local) for finding in findings])


def _inspect(trainable: Trainable, micro_batch: MicroBatch, *, items: int) -> tuple[str, Origin]:
    """What is not finite in a micro-batch (`loss`, `gradient` or nothing), and its origin."""
    trainable.discard()
    with Watch(trainable.models) as watch:
        loss = trainable.forward_backward(StepBatches([micro_batch], items))
    gradients_finite = bool(trainable.gradients_finite())
    trainable.discard()
    if not all(one.value.detach().isfinite() for one in loss.losses):
        return "loss", watch.in_forward(micro_batch.batch)
    origin = watch.in_backward()
    # A non-finite value that arose here may show on another rank, which holds that shard of the summed gradient.
    return ("gradient", origin) if not gradients_finite or origin.module is not None else ("", Origin(None, ""))


def _causes(findings: list[Finding]) -> list[Finding]:
    """Non-finite losses, else gradients on the ranks where they arose: after a sum over ranks, all have them.

    If a loss is not finite, other gradients say little: under a loss scale they may just have overflowed.
    """
    losses = [finding for finding in findings if finding.what == "loss"]
    return losses or [finding for finding in findings if finding.module is not None] or findings
