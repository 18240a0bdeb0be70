"""How ranks exchange gradients under DDP: the choice among torch's communication hooks."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

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
