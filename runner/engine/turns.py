"""The updates of a step: one, or those of several phases in turns."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from runner.engine.non_finite.guard import StepGuard
from runner.engine.training import Training
from runner.protocols import MicroBatchLoss, StepBatches, StepLoss, Update, World
from runner.teams.phases import Turn


class _Taken(NamedTuple):
    phase: str
    loss: StepLoss
    update: Update


def turns_of(training: Training, batches: StepBatches) -> Iterator[Turn]:
    """The updates of a step, each to be taken before the next one is asked for."""
    if training.turns is None:
        return iter((Turn("", training.trainable, batches),))
    return training.turns(batches)


def take_turns(
    training: Training, batches: StepBatches, guard: StepGuard, world: World, *, measure: bool
) -> tuple[StepLoss, Update]:
    """Take all updates of a step, and return their losses and updates as one."""
    taken = []
    for phase, trainable, own in turns_of(training, batches):
        loss = trainable.forward_backward(own)
        guard.allows(trainable, loss, world)
        taken.append(_Taken(phase, loss, trainable.update(measure=measure)))
    losses = [_named(loss, one.phase) for one in taken for loss in one.loss.losses]
    count = sum(one.loss.count for one in taken)
    return StepLoss(losses, count), _together(taken, measure=measure)


def _named(loss: MicroBatchLoss, phase: str) -> MicroBatchLoss:
    """With metrics under the name of the phase, and the loss as one of them."""
    metrics: dict[str, tuple[Tensor, Tensor | int]] = {f"{phase}/{name}": pair for name, pair in loss.metrics.items()}
    metrics[f"{phase}/loss"] = loss.value.detach() * loss.weight, loss.count
    return loss._replace(metrics=metrics)


def _together(taken: Sequence[_Taken], *, measure: bool) -> Update:
    """One update of them all: a step counts if any of them did."""
    record: dict[str, float] = {}
    for one in taken:
        record |= {f"{one.phase}/{name}": value for name, value in one.update.record.items()}
    norms = {one.phase: one.update.grad_norm for one in taken}  # the last of each phase
    known: Mapping[str, Tensor] = {phase: norm for phase, norm in norms.items() if norm is not None}
    if not measure or not known:
        return Update(any(one.update.stepped for one in taken), None, record)
    record |= {f"{phase}/grad_norm": norm.item() for phase, norm in known.items()}
    whole = torch.stack([norm.detach().cpu().double() for norm in known.values()]).square().sum().sqrt()
    return Update(any(one.update.stepped for one in taken), whole, record)
