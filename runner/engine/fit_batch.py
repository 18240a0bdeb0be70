"""batch.micro_items=auto: the largest micro-batch that fits into memory, found by taking real steps with it.

The steps run with a throwaway model, in a world whose collectives communicate with nobody. So weights, optimizer,
generators and position are not touched, and a rank that runs out of memory in the middle of a step leaves no other rank
waiting. batch.items does not change, and so neither do the results: only the number of micro-batches does.

A trial is shorter than a run, which meets larger items, saves checkpoints and fragments its memory. So part of the free
memory is reserved during the trial: users of tools that use all of it run out of memory hours later
(Lightning-AI/pytorch-lightning#20447).
"""

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from runner.config.run_spec import Batch, RunSpec
from runner.engine.listeners import build_listeners
from runner.errors import OutOfMemoryError
from runner.protocols import StepBatches, Trainable, World
from runner.world.hook_ranks import HookRanks
from runner.world.memory import free_bytes, return_large_blocks

logger = logging.getLogger(__name__)

MARGIN = 0.1
"""Fraction of the free memory to reserve; OpenNMT-tf#296 found a tenth to cover differences between batches."""
MICRO_BATCHES = 2
"""Micro-batches of each trial step: the second runs while the first one's gradients exist, like all later ones."""
PHRASES = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "std::bad_alloc")


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a trial step needs."""

    prepare: Callable[[], Trainable]
    """Builds a throwaway model and optimizer."""
    batches: Callable[[Batch], StepBatches]
    """Reads this rank's first step from the dataset, divided into micro-batches of this size."""


def fit_batch(spec: RunSpec, world: World, rehearsal: Rehearsal) -> RunSpec:
    """The spec with the largest micro_items that fits on every rank. Collective.

    Raises:
        OutOfMemoryError: not even one item fits; the message has the allocation that failed.
    """
    world.sum(torch.zeros(1, device=world.device))  # the first collective allocates what all of them need
    return_large_blocks(world.device)
    rank_items = spec.batch.items // world.axes.data_ranks
    sizes = [size for size in range(1, rank_items + 1) if rank_items % size == 0]
    trials = _Trials(spec, rank_items, world, rehearsal)
    fits, too_large, reason = -1, len(sizes), ""  # sizes[fits] fits, sizes[too_large] does not
    probe = len(sizes) - 1  # usually the largest fits
    while fits + 1 < too_large:
        if failure := trials.failure(sizes[probe]):
            too_large, reason = probe, failure
        else:
            fits = probe
        probe = (fits + too_large) // 2
    trials.close()
    if fits < 0:
        raise OutOfMemoryError(_one_item_needs(reason))
    batch = replace(spec.batch, micro_items=sizes[fits], accumulate=rank_items // sizes[fits], auto=False)
    limit = f"{sizes[too_large]} do not fit" if too_large < len(sizes) else "all items of a rank"
    logger.info("batch.micro_items=auto: %d (%s), %d micro-batches a step", batch.micro_items, limit, batch.accumulate)
    return replace(spec, batch=batch)


class _Trials:
    """Trial steps of different sizes, on the same throwaway model until one fails."""

    def __init__(self, spec: RunSpec, rank_items: int, world: World, rehearsal: Rehearsal) -> None:
        self._spec = spec
        self._rank_items = rank_items
        self._world = world
        self._rehearsal = rehearsal
        self._margin = int(MARGIN * free_bytes(world.device))
        self._trainable: Trainable | None = None
        self._reserved: list[Tensor] = []  # memory that the run needs besides; freed with the model

    def failure(self, micro_items: int) -> str:
        """Why this many items do not fit on some rank; empty if they fit on all. Collective."""
        batch = replace(self._spec.batch, micro_items=micro_items, accumulate=self._rank_items // micro_items)
        reason = self._try(batch)
        if reason:
            self.close()  # the interrupted step left the model unusable
        reasons = [reason for reason in self._world.gather_objects(reason) if reason]
        if reasons:
            self.close()
        return reasons[0] if reasons else ""

    def close(self) -> None:
        """Free the model and the reserved memory."""
        self._trainable, self._reserved = None, []
        gc.collect()
        if self._world.device.type != "cpu":
            torch.get_device_module(self._world.device).empty_cache()

    def _try(self, batch: Batch) -> str:
        try:
            if self._trainable is None:
                self._trainable = self._rehearsal.prepare()
                self._reserved = [
                    self._exchange_buffers(self._trainable),
                    *self._callback_tensors(self._trainable),
                    self._margin_buffer(),
                ]
                self._step(self._trainable, batch)  # the first step allocates the optimizer's state
            self._step(self._trainable, batch)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return str(error).splitlines()[0] if str(error) else type(error).__name__
        return ""

    def _step(self, trainable: Trainable, batch: Batch) -> None:
        """Take a step like those of the run, but with at most MICRO_BATCHES micro-batches."""
        batches = self._rehearsal.batches(batch)
        trainable.forward_backward(StepBatches(batches.micro_batches[:MICRO_BATCHES], batches.items))
        trainable.update(measure=True)

    def _exchange_buffers(self, trainable: Trainable) -> Tensor:
        """Memory for the buffers in which ranks exchange gradients, which a trial does not allocate."""
        size = trainable.exchange_bytes if self._world.size > 1 else 0
        return torch.empty(size, dtype=torch.uint8, device=self._world.device)

    def _callback_tensors(self, trainable: Trainable) -> list[Tensor]:
        """The tensors of callbacks: a moving average is as large as the weights."""
        named = build_listeners(self._spec.callback, HookRanks(self._world)).tensors(trainable)
        return [tensor for tensors in named.values() for tensor in tensors.values()]

    def _margin_buffer(self) -> Tensor:
        return torch.empty(self._margin, dtype=torch.uint8, device=self._world.device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory: devices have a type for it, the host MemoryError or only a message."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in PHRASES)


def _one_item_needs(reason: str) -> str:
    return (
        "batch.micro_items=auto: not even one item fits. In addition to weights, gradients and optimizer state, one "
        f"item needs more memory than is left, {MARGIN:.0%} of which is reserved: {reason}. Use "
        "activation_checkpointing.what=blocks, a narrower precision, a strategy that shards the model among ranks, "
        "or shorter items."
    )
