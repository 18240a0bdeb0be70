"""Where in a step the first number arose that is not finite: on which rank, for which items, in which module."""

from typing import NamedTuple

import torch

from runner.engine.non_finite.watch import Origin, Watch
from runner.protocols import MicroBatch, StepBatches, StepPlan, Trainable, World

SHOWN = 16  # items in a message; the file has all


class Finding(NamedTuple):
    """What one rank found in one micro-batch."""

    rank: int
    micro_batch: int
    """Which of the step's, on that rank."""
    items: list[int] | None
    """Indices into the training dataset; None if its items have none."""
    epoch: int | None
    what: str
    """loss, or gradient."""
    module: str | None
    """The first module that made it; None = it arose outside of all."""
    how: str
    """The same as part of a sentence."""

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
    """Forward and backward a step again, watching every module; the weights are not touched. Collective.

    Args:
        plan: the items of the step on this rank; None if they have no index.

    Returns:
        One for each rank and micro-batch in which something is not finite; the same on every rank.
    """
    mine = []
    with torch.compiler.set_stance("force_eager"):  # a compiled module calls none of the hooks that watch it
        for number, micro_batch in enumerate(batches.micro_batches):
            what, origin = _look_at(trainable, micro_batch, items=batches.items)
            if what:
                share = plan.micro_batches[number] if plan is not None else None
                items, epoch = (share.indices, share.epoch) if share is not None else (None, None)
                mine.append(Finding(world.rank, number, items, epoch, what, origin.module, origin.how))
    return _causes([finding for findings in world.gather_objects(mine) for finding in findings])


def _look_at(trainable: Trainable, micro_batch: MicroBatch, *, items: int) -> tuple[str, Origin]:
    """What is not finite, empty if nothing is, and where it came from."""
    trainable.discard()
    with Watch(trainable.models) as watch:
        loss = trainable.forward_backward(StepBatches([micro_batch], items))
    gradients_finite = bool(trainable.gradients_finite())
    trainable.discard()
    if not all(one.value.detach().isfinite() for one in loss.losses):
        return "loss", watch.in_forward(micro_batch.batch)
    origin = watch.in_backward()
    # What arose here may be noticed elsewhere: of a sharded gradient, a rank keeps its own part of the sum.
    return ("gradient", origin) if not gradients_finite or origin.module is not None else ("", Origin(None, ""))


def _causes(findings: list[Finding]) -> list[Finding]:
    """Losses, else gradients on the ranks that saw them arise: what was summed over ranks is spoilt on all.

    Where a loss is not finite, a gradient elsewhere says little: under a loss scale it may just have overflowed.
    """
    losses = [finding for finding in findings if finding.what == "loss"]
    return losses or [finding for finding in findings if finding.module is not None] or findings
