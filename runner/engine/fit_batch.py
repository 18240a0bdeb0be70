"""batch.micro_items=auto: the largest micro-batch that fits into memory, found by taking real steps with it.

The steps are rehearsed: with a model of their own, thrown away afterwards, in a world whose collectives go nowhere. So
neither weights nor optimizer, generators or position can be touched, and a rank that runs out of memory in mid-step
leaves nobody waiting. batch.items stays, so the mathematics do, too: only the number of rounds follows.

A rehearsal is shorter than a run, which meets larger items, saves, and has its memory cut into pieces. So a part of
what is free at first is held back while steps are rehearsed: users of finders that take all of it run out of memory
hours later (Lightning-AI/pytorch-lightning#20447).
"""

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from runner.config.run_spec import Batch, RunSpec
from runner.engine.listeners import build_listeners
from runner.errors import HookError
from runner.protocols import StepBatches, Trainable, World
from runner.world.memory import free_bytes, return_large_blocks

logger = logging.getLogger(__name__)

MARGIN = 0.1
"""Of what is free before the first attempt; OpenNMT-tf#296 found a tenth to absorb what batches differ by."""
ROUNDS = 2
"""Of each rehearsed step: the second runs beside the gradient of the first, and so would all others."""
PHRASES = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "std::bad_alloc")


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What it takes to try a step."""

    prepare: Callable[[], Trainable]
    """A throwaway model and optimizer."""
    batches: Callable[[Batch], StepBatches]
    """The first step of this rank, read from the dataset and cut so."""


def fit_batch(spec: RunSpec, world: World, rehearsal: Rehearsal) -> RunSpec:
    """The spec with the largest micro_items that fits on every rank. Collective.

    Raises:
        HookError: not even one item fits; says what it needs.
    """
    world.sum(torch.zeros(1, device=world.device))  # what collectives themselves take is there from the first one on
    return_large_blocks(world.device)
    share = spec.batch.items // spec.strategy.axes(world.size).data_ranks
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    attempts = _Attempts(spec, share, world, rehearsal)
    fits, too_large, reason = -1, len(sizes), ""  # sizes[fits] fits, sizes[too_large] does not
    probe = len(sizes) - 1  # most often all of it fits
    while fits + 1 < too_large:
        if refused := attempts.refusal(sizes[probe]):
            too_large, reason = probe, refused
        else:
            fits = probe
        probe = (fits + too_large) // 2
    attempts.close()
    if fits < 0:
        raise HookError(_one_item_needs(reason))
    batch = replace(spec.batch, micro_items=sizes[fits], accumulate=share // sizes[fits], auto=False)
    limit = f"{sizes[too_large]} do not fit" if too_large < len(sizes) else "all of a rank's share"
    logger.info("batch.micro_items=auto: %d (%s), %d rounds a step", batch.micro_items, limit, batch.accumulate)
    return replace(spec, batch=batch)


class _Attempts:
    """Steps of one size after the other, on one throwaway model as long as none fails."""

    def __init__(self, spec: RunSpec, share: int, world: World, rehearsal: Rehearsal) -> None:
        self._spec = spec
        self._share = share
        self._world = world
        self._rehearsal = rehearsal
        self._margin = int(MARGIN * free_bytes(world.device))
        self._trainable: Trainable | None = None
        self._beside: list[Tensor] = []  # what the run has besides: alive as long as the model

    def refusal(self, micro_items: int) -> str:
        """Why that many items do not fit on some rank; empty if they do on all. Collective."""
        batch = replace(self._spec.batch, micro_items=micro_items, accumulate=self._share // micro_items)
        reason = self._try(batch)
        if reason:
            self.close()  # what was left in mid-step is of no use
        reasons = [reason for reason in self._world.gather_objects(reason) if reason]
        if reasons:
            self.close()
        return reasons[0] if reasons else ""

    def close(self) -> None:
        """Throw the model away."""
        self._trainable, self._beside = None, []
        gc.collect()
        if self._world.device.type != "cpu":
            torch.get_device_module(self._world.device).empty_cache()

    def _try(self, batch: Batch) -> str:
        try:
            if self._trainable is None:
                self._trainable = self._rehearsal.prepare()
                self._beside = [*self._exchanged(self._trainable), *self._averaged(self._trainable), self._held_back()]
                self._step(self._trainable, batch)  # after this one, what the optimizer keeps is there
            self._step(self._trainable, batch)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return str(error).splitlines()[0] if str(error) else type(error).__name__
        return ""

    def _step(self, trainable: Trainable, batch: Batch) -> None:
        """A step as the run takes it, of fewer rounds."""
        batches = self._rehearsal.batches(batch)
        trainable.forward_backward(StepBatches(batches.micro_batches[:ROUNDS], batches.items))
        trainable.update(measure=True)

    def _exchanged(self, trainable: Trainable) -> list[Tensor]:
        """Buckets in which ranks exchange gradients, and which a rehearsal alone does not have."""
        groups = trainable.optimizer.param_groups if self._world.size > 1 else []
        return [torch.empty_like(parameter) for group in groups for parameter in group["params"]]

    def _averaged(self, trainable: Trainable) -> list[Tensor]:
        """What callbacks keep: a moving average is as large as the weights."""
        tensors = build_listeners(self._spec.callback).tensors(trainable)
        return [tensor for named in tensors.values() for tensor in named.values()]

    def _held_back(self) -> Tensor:
        return torch.empty(self._margin, dtype=torch.uint8, device=self._world.device)


def is_out_of_memory(error: BaseException) -> bool:
    """A device says so by its own type; the host by MemoryError, or in words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in PHRASES)


def _one_item_needs(reason: str) -> str:
    return (
        "batch.micro_items=auto: not even one item fits. Beside weights, gradients and what the optimizer keeps, one "
        f"item needs more than is left, of which {MARGIN:.0%} are held back: {reason}. Use "
        "activation_checkpointing.what=blocks, a precision of fewer bytes, a strategy that cuts the model among ranks, "
        "or shorter items."
    )
