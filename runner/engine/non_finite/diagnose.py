"""Where in a step the first number arose that is not finite: on which rank, for which items, in which module."""

from typing import NamedTuple

import torch

from runner.engine.non_finite.guard import discard_gradients, gradients
from runner.engine.non_finite.watch import Origin, Watch
from runner.protocols import MicroBatch, StepBatches, StepPlan, Trainable, World

SHOWN = 16  # items in a message; the file has all


class Finding(NamedTuple):
    """What one rank found in one micro-batch."""

    rank: int
    micro_batch: int
    """Which accumulation round."""
    items: list[int] | None
    """Indices into the training dataset; None = the source's items have no index."""
    epoch: int | None
    what: str
    """loss, or gradient."""
    module: str | None
    """The first module that made it; None = it arose outside of all."""
    how: str
    """The same as part of a sentence."""

    def __str__(self) -> str:
        where = f"rank {self.rank}, micro-batch {self.micro_batch}"
        if self.items is not None:
            more = f" and {len(self.items) - SHOWN} more" if len(self.items) > SHOWN else ""
            items = ", ".join(map(str, self.items[:SHOWN])) + more
            where += f", items {items} of the dataset (epoch {self.epoch})"
        return f"{where}: the {self.what} is not finite; {self.how}"


def diagnose(trainable: Trainable, batches: StepBatches, plan: StepPlan | None, world: World) -> list[Finding]:
    """Forward and backward a step again, with an eye on every module; the weights are not touched. Collective.

    Returns:
        One for each rank and micro-batch in which something is not finite; the same on every rank.
    """
    mine = []
    with torch.compiler.set_stance("force_eager"):  # a compiled module calls none of the hooks that watch it
        for number, micro_batch in enumerate(batches.micro_batches):
            what, origin = _look_at(trainable, micro_batch, items=batches.items)
            if what:
                items, _, epoch = plan.micro_batches[number] if plan else (None, 0, None)
                mine.append(Finding(world.rank, number, items, epoch, what, origin.module, origin.how))
    return _causes([finding for findings in world.gather_objects(mine) for finding in findings])


def _look_at(trainable: Trainable, micro_batch: MicroBatch, *, items: int) -> tuple[str, Origin]:
    """What is not finite, empty if nothing is, and where it came from."""
    discard_gradients(trainable)
    with Watch(trainable.model) as watch:
        loss = trainable.forward_backward(StepBatches([micro_batch], items))
    spoilt = not all(bool(grad.isfinite().all()) for grad in gradients(trainable))
    discard_gradients(trainable)
    if not loss.losses[0].value.detach().isfinite():
        return "loss", watch.in_forward(micro_batch.batch)
    origin = watch.in_backward()
    # What arose here may lie elsewhere by now: of a sharded gradient, a rank keeps its own part of the sum.
    return ("gradient", origin) if spoilt or origin.module is not None else ("", Origin(None, ""))


def _causes(findings: list[Finding]) -> list[Finding]:
    """Losses, else gradients on the ranks that saw them arise: what was summed over ranks is spoilt on all.

    Where a loss is not finite, a gradient elsewhere says little: under a loss scale it may just have overflowed.
    """
    losses = [finding for finding in findings if finding.what == "loss"]
    return losses or [finding for finding in findings if finding.module is not None] or findings
