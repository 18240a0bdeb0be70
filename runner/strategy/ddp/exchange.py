"""How ranks exchange gradients under DDP: the choice of torch's communication hooks, and their state."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
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

logger = logging.getLogger(__name__)

Hook = Callable[[Any, GradBucket], Future[Tensor]]
# DDP rebuilds its buckets after the first step; state that PowerSGD kept from before has the old layout.
FIRST_STABLE_STEP = 2


class CommHook(Enum):
    """What ranks exchange in place of each bucket of gradients."""

    NONE = "none"
    """The bucket itself."""
    FP16 = "fp16"
    """The bucket, rounded to float16."""
    BF16 = "bf16"
    """The bucket, rounded to bfloat16."""
    POWERSGD = "powersgd"
    """Two low-rank factors of each matrix. Vogels et al. (NeurIPS 2019)."""
    BATCHED_POWERSGD = "batched_powersgd"
    """Two low-rank factors of the bucket as one square matrix: faster, but less accurate."""


class CommWrapper(Enum):
    """The dtype in which PowerSGD's tensors are exchanged."""

    NONE = "none"
    """The dtype of the gradients."""
    FP16 = "fp16"
    """Cast to float16."""
    BF16 = "bf16"
    """Cast to bfloat16."""


HOOKS: Mapping[CommHook, Hook] = {
    CommHook.FP16: default_hooks.fp16_compress_hook,
    CommHook.BF16: default_hooks.bf16_compress_hook,
    CommHook.POWERSGD: powerSGD_hook,
    CommHook.BATCHED_POWERSGD: batched_power_sgd,
}
FACTORED = (CommHook.POWERSGD, CommHook.BATCHED_POWERSGD)
POWER_SGD = (
    "matrix_approximation_rank",
    "start_powerSGD_iter",
    "min_compression_rate",
    "use_error_feedback",
    "warm_start",
    "orthogonalization_epsilon",
    "random_seed",
    "compression_stats_logging_frequency",
    "batch_tensors_with_same_shape",
)
NOT_BATCHED = ("min_compression_rate", "batch_tensors_with_same_shape")
WRAPPERS: Mapping[CommWrapper, Callable[[Hook], Hook]] = {
    CommWrapper.NONE: lambda hook: hook,
    CommWrapper.FP16: default_hooks.fp16_compress_wrapper,
    CommWrapper.BF16: default_hooks.bf16_compress_wrapper,
}


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A communication hook, the wrapper around it, and the settings of PowerSGD."""

    hook: CommHook
    wrapper: CommWrapper
    power_sgd: Mapping[str, Any]
    """By the names in POWER_SGD, which are those of torch's PowerSGDState."""

    @property
    def is_narrow(self) -> bool:
        """Whether a sum over many items may overflow the exchange's dtype, or a step leaves a compression error.

        The error is added to the next step's gradient, so both should have the same scale, whatever each step counts.
        """
        return self.hook is CommHook.FP16 or self.wrapper is CommWrapper.FP16 or self.is_factored

    @property
    def is_factored(self) -> bool:
        """Whether the hook is a variant of PowerSGD."""
        return self.hook in FACTORED

    def contradiction(self, defaults: Mapping[str, Any]) -> str:
        """A message about settings that contradict each other, or an empty one.

        Args:
            defaults: of `power_sgd`; a value that differs counts as set.
        """
        hook, wrapper = self.hook.value, self.wrapper.value
        if self.wrapper is not CommWrapper.NONE and not self.is_factored:
            way_out = f"Use comm_hook={wrapper} alone, or comm_hook=powersgd inside the wrapper."
            return f"comm_wrapper={wrapper} only wraps PowerSGD, but comm_hook={hook}. {way_out}"
        ignored = [] if self.is_factored else list(defaults)
        ignored += NOT_BATCHED if self.hook is CommHook.BATCHED_POWERSGD else ()
        if changed := [name for name in ignored if self.power_sgd[name] != defaults[name]]:
            name = changed[0]
            rule = f"comm_hook={hook} does not use it. Use comm_hook=powersgd, or {name}={defaults[name]}."
            return f"{name}={self.power_sgd[name]}: {rule}"
        has_memory = self.power_sgd["use_error_feedback"] or self.power_sgd["warm_start"]
        if self.is_factored and has_memory and self.power_sgd["start_powerSGD_iter"] < FIRST_STABLE_STEP:
            return (
                f"start_powerSGD_iter={self.power_sgd['start_powerSGD_iter']} must be at least {FIRST_STABLE_STEP} "
                "with use_error_feedback or warm_start: DDP rebuilds its buckets after the first step."
            )
        return ""

    def install(self, wrapped: DistributedDataParallel) -> "Mapping[str, PowerSGDProgress]":
        """Register the hook with the wrapped model.

        Returns:
            State of the hook for checkpoints, by name.
        """
        if self.hook is CommHook.NONE:
            return {}
        state = PowerSGDState(None, **self.power_sgd) if self.is_factored else None
        inner = WRAPPERS[self.wrapper](HOOKS[self.hook])

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
