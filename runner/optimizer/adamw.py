"""AdamW: Loshchilov, Hutter (ICLR 2019), as torch.optim has it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch
from torch.nn import Module, Parameter

from runner.errors import Fault
from runner.optimizer.groups import check_patterns, group_checks, parameter_groups
from runner.optimizer.scale import ScaleLR, check_scale, scaled

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class AdamW:
    """torch.optim.AdamW."""

    lr: float = 1e-3
    """Learning rate that the schedule's factor multiplies."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the denominator."""
    weight_decay: float = 0.01
    """Decoupled decay, times the learning rate, each step."""
    no_decay: list[str] = field(default_factory=list)
    """Regular expressions; a parameter in whose name one is found does not decay."""
    groups: list[dict[str, Any]] = field(default_factory=list)
    """Parameters with a rate or decay of their own: {match: pattern, lr_factor: 0.1, weight_decay: 0.0}; first wins."""
    scale_lr: ScaleLR = ScaleLR.NONE
    """How the rate follows batch.items. Changing hardware needs none: it leaves batch.items alone."""
    base_items: int | None = None
    """The batch.items that `lr` was found for; null = not said."""
    fused: bool | None = None
    """One kernel for all parameters; null = torch's choice by device: one for each operation (foreach) on a GPU."""

    def __post_init__(self) -> None:
        if not self.lr >= 0:
            raise ValueError(f"lr={self.lr} must not be negative.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={list(self.betas)} must lie in [0, 1).")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay={self.weight_decay} must not be negative.")
        check_patterns(self.no_decay, self.groups)
        check_scale(self.scale_lr, self.base_items)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Goes with everything."""
        return ()

    def model_checks(self, spec: "RunSpec") -> Iterable[Callable[[Module], Iterable[Fault]]]:
        """Each group must take a parameter."""
        return group_checks(self.groups)

    def build(self, named_parameters: Iterable[tuple[str, Parameter]], *, items: int) -> torch.optim.Optimizer:
        """Over the parameters that require a gradient."""
        lr = scaled(self.lr, self.scale_lr, base_items=self.base_items, items=items)
        return torch.optim.AdamW(
            parameter_groups(named_parameters, lr=lr, no_decay=self.no_decay, groups=self.groups),
            lr=lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=self.fused,
        )
