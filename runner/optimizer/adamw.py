"""AdamW: torch.optim's implementation of Loshchilov and Hutter (ICLR 2019)."""

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
class AdamW:
    """torch.optim.AdamW."""

    lr: float = 1e-3
    """Base learning rate, which the schedule multiplies by a factor."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the running averages of the gradient and its square."""
    eps: float = 1e-8
    """Added to the denominator for numerical stability."""
    weight_decay: float = 0.01
    """Decoupled weight decay coefficient, multiplied by the learning rate in each step."""
    no_decay: list[str] = field(default_factory=list)
    """Regular expressions; a parameter whose name contains a match gets no weight decay."""
    groups: list[dict[str, Any]] = field(default_factory=list)
    """Parameters with their own lr or decay: {match: pattern, lr_factor: 0.1, weight_decay: 0.0}; first match wins."""
    scale_lr: ScaleLR = ScaleLR.NONE
    """How lr scales with batch.items. Not needed for other hardware, which leaves batch.items unchanged."""
    base_items: int | None = None
    """The batch.items that `lr` was tuned for; needed if `scale_lr` is not none."""
    fused: bool | None = None
    """Use torch's fused implementation; null = where it is fastest: on the CPU in float32."""

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
        return torch.optim.AdamW(
            groups,
            lr=lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=fused_or_default(self.fused, groups, takes_distributed=True),
        )

    def graph_update(self) -> GraphUpdate:
        """The same inside a compiled graph."""
        from runner.optimizer.in_graph import update_adamw

        return GraphUpdate(("step", "exp_avg", "exp_avg_sq"), update_adamw)
