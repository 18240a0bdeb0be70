"""How DDP's ranks exchange gradients: what of torch's communication hooks a run uses, and what they keep."""

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
# DDP lays out its buckets anew after its first exchange; what PowerSGD remembers has the old layout until then.
SETTLED = 2


class CommHook(Enum):
    """What travels between ranks in place of each bucket of gradients."""

    NONE = "none"
    """The bucket."""
    FP16 = "fp16"
    """The bucket, rounded to float16."""
    BF16 = "bf16"
    """The bucket, rounded to bfloat16."""
    POWERSGD = "powersgd"
    """Of each matrix two narrow factors. Vogels et al. (NeurIPS 2019)."""
    BATCHED_POWERSGD = "batched_powersgd"
    """Of the bucket as one square matrix two narrow factors: faster, and coarser."""


class CommWrapper(Enum):
    """In which type what travels does so."""

    NONE = "none"
    """As it is."""
    FP16 = "fp16"
    """float16."""
    BF16 = "bf16"
    """bfloat16."""


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
    """A hook, the wrapper around it, and the settings of PowerSGD."""

    hook: CommHook
    wrapper: CommWrapper
    power_sgd: Mapping[str, Any]
    """By torch's own names: POWER_SGD."""

    @property
    def is_narrow(self) -> bool:
        """Whether gradients travel in a type that a sum over many items overflows, or leave a rest for the next step.

        The rest is added to the next step's gradient, so both should be of one size, whatever each step counts.
        """
        return self.hook is CommHook.FP16 or self.wrapper is CommWrapper.FP16 or self.is_factored

    @property
    def is_factored(self) -> bool:
        """Whether the hook is a PowerSGD."""
        return self.hook in FACTORED

    def contradiction(self, defaults: Mapping[str, Any]) -> str:
        """What of it does not go together, or nothing.

        Args:
            defaults: of `power_sgd`: what differs was asked for.
        """
        hook, wrapper = self.hook.value, self.wrapper.value
        if self.wrapper is not CommWrapper.NONE and not self.is_factored:
            instead = f"Use comm_hook={wrapper} alone, or comm_hook=powersgd inside the wrapper."
            return f"comm_wrapper={wrapper} goes around PowerSGD, but comm_hook={hook}. {instead}"
        ignored = [] if self.is_factored else list(defaults)
        ignored += NOT_BATCHED if self.hook is CommHook.BATCHED_POWERSGD else ()
        if asked := [name for name in ignored if self.power_sgd[name] != defaults[name]]:
            name = asked[0]
            rule = f"comm_hook={hook} does not look at it. Use comm_hook=powersgd, or {name}={defaults[name]}."
            return f"{name}={self.power_sgd[name]}: {rule}"
        remembers = self.power_sgd["use_error_feedback"] or self.power_sgd["warm_start"]
        if self.is_factored and remembers and self.power_sgd["start_powerSGD_iter"] < SETTLED:
            return (
                f"start_powerSGD_iter={self.power_sgd['start_powerSGD_iter']} must be at least {SETTLED} with "
                "use_error_feedback or warm_start: DDP lays out its buckets anew after the first step."
            )
        return ""

    def install(self, wrapped: DistributedDataParallel) -> "Mapping[str, Factors]":
        """Let the wrapped model exchange so.

        Returns:
            What has a memory, by its name in checkpoints.
        """
        if self.hook is CommHook.NONE:
            return {}
        state = PowerSGDState(None, **self.power_sgd) if self.is_factored else None
        inner = WRAPPERS[self.wrapper](HOOKS[self.hook])

        # DDP refuses the bfloat16 hooks of torch by the name of their function unless it was built for NCCL; gloo sums
        # bfloat16 as well.
        def exchange(state: Any, bucket: GradBucket) -> Future[Tensor]:
            return inner(state, bucket)

        exchange.__annotations__ = {"bucket": GradBucket, "return": torch.futures.Future[torch.Tensor]}
        wrapped.register_comm_hook(state, exchange)
        return {"power_sgd": Factors(state)} if state is not None else {}


@final
class Factors:
    """What of PowerSGD's memory goes into checkpoints: how many steps it has seen.

    Not what each rank has left over of its last gradient. That is as large as the gradients on each rank, lies in the
    layout of one process's buckets, and means nothing to another number of ranks or another strategy, while a
    checkpoint belongs to the run. What is lost is the rest of a single step.
    """

    def __init__(self, state: PowerSGDState) -> None:
        self._state = state

    def state_dict(self) -> dict[str, Any]:
        """The same on every rank."""
        return {"steps": self._state.iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on factoring where that had begun, after as many whole exchanges as DDP needs to settle its buckets."""
        if not state_dict:
            return
        start = self._state.start_powerSGD_iter
        self._state.iter = min(state_dict["steps"], max(start - SETTLED, 0))
        if state_dict["steps"] > start:
            said = "PowerSGD goes on after %d steps with whole gradients; what the last step left over is not kept"
            logger.info(said, start - self._state.iter)
