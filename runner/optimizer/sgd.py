"""Stochastic gradient descent, as torch.optim has it."""

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
class SGD:
    """torch.optim.SGD."""

    lr: float = 1e-3
    """Learning rate that the schedule's factor multiplies."""
    momentum: float = 0.0
    """Decay of the running gradient; 0 = off."""
    nesterov: bool = False
    """Nesterov's momentum; needs momentum > 0."""
    dampening: float = 0.0
    """How much of a new gradient momentum leaves out."""
    weight_decay: float = 0.0
    """Added to the gradient, times the weight."""
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
        if not self.momentum >= 0:
            raise ValueError(f"momentum={self.momentum} must not be negative.")
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError("nesterov=true needs momentum above 0 and dampening=0.")
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
        return torch.optim.SGD(
            parameter_groups(named_parameters, lr=lr, no_decay=self.no_decay, groups=self.groups),
            lr=lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            dampening=self.dampening,
            weight_decay=self.weight_decay,
            fused=self.fused,
        )
