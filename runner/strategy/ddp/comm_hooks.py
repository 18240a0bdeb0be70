"""Registers torch's communication hooks with DDP, and keeps their state for checkpoints."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import (
    PowerSGDState,
    powerSGD_hook,
)
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from runner.strategy.ddp.batched_power_sgd import batched_power_sgd
from runner.strategy.ddp.exchange import FIRST_STABLE_STEP, CommHook, CommWrapper, Exchange

logger = logging.getLogger(__name__)

Hook = Callable[[Any, GradBucket], Future[Tensor]]
HOOKS: Mapping[CommHook, Hook] = {
    CommHook.FP16: default_hooks.fp16_compress_hook,
    CommHook.BF16: default_hooks.bf16_compress_hook,
    CommHook.POWERSGD: powerSGD_hook,
    CommHook.BATCHED_POWERSGD: batched_power_sgd,
}
WRAPPERS: Mapping[CommWrapper, Callable[[Hook], Hook]] = {
    CommWrapper.NONE: lambda hook: hook,
    CommWrapper.FP16: default_hooks.fp16_compress_wrapper,
    CommWrapper.BF16: default_hooks.bf16_compress_wrapper,
}


def install(settings: Exchange, wrapped: DistributedDataParallel) -> "Mapping[str, PowerSGDProgress]":
    """Register the chosen hook with the wrapped model.

    Returns:
        State of the hook for checkpoints, by name.
    """
    if settings.hook is CommHook.NONE:
        return {}
    state = PowerSGDState(None, **settings.power_sgd) if settings.is_factored else None
    inner = WRAPPERS[settings.wrapper](HOOKS[settings.hook])

    # Without NCCL, DDP rejects torch's bfloat16 hooks by the name of their function; but gloo can sum bfloat16.
    def exchange(state: Any, bucket: GradBucket) -> Future[Tensor]:
        return inner(state, bucket)

    exchange.__annotations__ = {"bucket": GradBucket, "return": torch.futures.Future[torch.Tensor]}
    wrapped.register_comm_hook(state, exchange)
    return {"power_sgd": PowerSGDProgress(state)} if state is not None else {}


@final
class PowerSGDProgress:
    """The part of PowerSGD's state that goes into checkpoints: how many steps it has seen.

    Each rank's compression error is not saved: it is as large as the gradients on every rank, has the layout of one
    process's buckets, and cannot be used with another number of ranks or another strategy, while a checkpoint belongs
    to the run. Only the error of a single step is lost.
    """

    def __init__(self, state: PowerSGDState) -> None:
        self._state = state

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, the same on every rank."""
        return {"steps": self._state.iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue compressing if that had begun, after the uncompressed steps in which DDP rebuilds its buckets."""
        if not state_dict:
            return
        start = self._state.start_powerSGD_iter
        self._state.iter = min(state_dict["steps"], max(start - FIRST_STABLE_STEP, 0))
        if state_dict["steps"] > start:
            line = "PowerSGD continues after %d steps with uncompressed gradients; the last compression error is lost"
            logger.info(line, start - self._state.iter)
