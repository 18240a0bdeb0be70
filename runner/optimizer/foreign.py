"""Any optimizer class with torch's interface, named by `_target_`: it takes parameter groups and keyword arguments."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch
from torch.nn import Module, Parameter

from runner.config.imports import NotFound, locate
from runner.errors import Fault
from runner.optimizer.groups import check_patterns, group_checks, parameter_groups
from runner.optimizer.scale import ScaleLR, check_scale, scaled

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class ForeignOptimizer:
    """Adapter for an optimizer class that is not one of the runner's parts."""

    target: str
    """Dotted path of a torch.optim.Optimizer subclass: torch.optim.RMSprop."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the constructor."""
    no_decay: list[str] = field(default_factory=list)
    """Regular expressions; a parameter whose name contains a match gets weight_decay=0."""
    groups: list[dict[str, Any]] = field(default_factory=list)
    """Parameters with their own lr or decay: {match: pattern, lr_factor: 0.1, weight_decay: 0.0}; first match wins."""
    scale_lr: ScaleLR = ScaleLR.NONE
    """How lr scales with batch.items. Not needed for other hardware, which leaves batch.items unchanged."""
    base_items: int | None = None
    """The batch.items that `lr` was tuned for; needed if `scale_lr` is not none."""

    def __post_init__(self) -> None:
        check_patterns(self.no_decay, self.groups)
        check_scale(self.scale_lr, self.base_items)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Requires that the constructor accepts the arguments, by building the optimizer over a single scalar."""
        try:
            defaults = self._defaults()
        except NotFound as missing:
            yield Fault(key="optimizer", message=f"{self.target} cannot be used: {missing}")
            return
        except (TypeError, ValueError) as error:
            yield Fault(key="optimizer", message=f"{self.target} rejects {dict(self.arguments)}: {error}")
            return
        sets_decay = bool(self.no_decay) or any("weight_decay" in group for group in self.groups)
        if sets_decay and "weight_decay" not in defaults:
            rule = f"{self.target} has no weight_decay. Remove no_decay and weight_decay from the groups."
            yield Fault(key="optimizer", message=rule)
        scales_lr = self.scale_lr is not ScaleLR.NONE or any("lr_factor" in group for group in self.groups)
        if scales_lr and not isinstance(defaults.get("lr"), int | float):
            rule = f"{self.target} has no lr to multiply. Set lr, or remove scale_lr and lr_factor from the groups."
            yield Fault(key="optimizer", message=rule)

    def model_checks(self, spec: "RunSpec") -> Iterable[Callable[[Module], Iterable[Fault]]]:
        """Each group must take a parameter."""
        return group_checks(self.groups)

    def build(self, named_parameters: Iterable[tuple[str, Parameter]], *, items: int) -> torch.optim.Optimizer:
        """Builds the optimizer over the parameters that require a gradient."""
        arguments, lr = dict(self.arguments), self._defaults().get("lr")
        if lr is not None and self.scale_lr is not ScaleLR.NONE:
            arguments["lr"] = lr = scaled(lr, self.scale_lr, base_items=self.base_items, items=items)
        groups = parameter_groups(named_parameters, lr=lr, no_decay=self.no_decay, groups=self.groups)
        return self._instantiate(groups, arguments)

    def _defaults(self) -> dict[str, Any]:
        """Return the optimizer's defaults: the options of a parameter group that sets none of its own."""
        return self._instantiate([Parameter(torch.zeros(1))], self.arguments).defaults

    def _instantiate(self, parameters: list[Any], arguments: Mapping[str, Any]) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = locate(self.target)(parameters, **arguments)
        return optimizer
