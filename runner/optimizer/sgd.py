"""Stochastic gradient descent: torch.optim's implementation."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from runner.errors import Fault
from runner.optimizer.fused import fused_or_default
from runner.optimizer.groups import check_patterns, group_checks, parameter_groups
from runner.optimizer.scale import ScaleLR, check_scale, scaled
from runner.protocols import GraphUpdate

if TYPE_CHECKING:
    import torch
    from torch.nn import Module, Parameter

    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class SGD:
    """torch.optim.SGD."""

    lr: float = 1e-3
    """Base learning rate, which the schedule multiplies by a factor."""
    momentum: float = 0.0
    """Momentum factor; 0 = off."""
    nesterov: bool = False
    """Use Nesterov momentum; needs momentum > 0 and dampening = 0."""
    dampening: float = 0.0
    """Dampening of the momentum: the fraction of each new gradient that it leaves out."""
    weight_decay: float = 0.0
    """L2 penalty: this coefficient times the weight is added to the gradient."""
    no_decay: list[str] = field(default_factory=list)
    """Regular expressions; a parameter whose name contains a match gets no weight decay."""
    groups: list[dict[str, Any]] = field(default_factory=list)
    """Parameters with their own lr or decay: {match: pattern, lr_factor: 0.1, weight_decay: 0.0}; first match wins."""
    scale_lr: ScaleLR = ScaleLR.NONE
    """How lr scales with batch.items. Not needed for other hardware, which leaves batch.items unchanged."""
    base_items: int | None = None
    """The batch.items that `lr` was tuned for; needed if `scale_lr` is not none."""
    fused: bool | None = None
    """Use torch's fused implementation; null = where it is fastest: with momentum, on the CPU in float32."""

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
        """Yields nothing: works with every other part."""
        return ()

    def model_checks(self, spec: "RunSpec") -> "Iterable[Callable[[Module], Iterable[Fault]]]":
        """Each group must take a parameter."""
        return group_checks(self.groups)

    def build(self, named_parameters: "Iterable[tuple[str, Parameter]]", *, items: int) -> "torch.optim.Optimizer":
        """Builds the optimizer over the parameters that require a gradient."""
        import torch

        lr = scaled(self.lr, self.scale_lr, base_items=self.base_items, items=items)
        groups = parameter_groups(named_parameters, lr=lr, no_decay=self.no_decay, groups=self.groups)
        is_faster = self.momentum > 0
        return torch.optim.SGD(
            groups,
            lr=lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            dampening=self.dampening,
            weight_decay=self.weight_decay,
            fused=fused_or_default(self.fused, groups, takes_distributed=False, is_faster=is_faster),
        )

    def graph_update(self) -> GraphUpdate:
        """The same inside a compiled graph."""
        from runner.optimizer.in_graph import update_sgd

        return GraphUpdate(("momentum_buffer",) if self.momentum > 0 else (), update_sgd)
