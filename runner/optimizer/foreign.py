"""Any optimizer of torch's shape, named by `_target_`: a class that takes parameter groups and keyword arguments."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
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
class ForeignOptimizer:
    """An optimizer class that is no part of the runner."""

    target: str
    """Dotted path of a torch.optim.Optimizer: torch.optim.RMSprop."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What it is built with, besides the parameters."""
    no_decay: list[str] = field(default_factory=list)
    """Regular expressions; a parameter in whose name one is found gets weight_decay=0."""
    groups: list[dict[str, Any]] = field(default_factory=list)
    """Parameters with a rate or decay of their own: {match: pattern, lr_factor: 0.1, weight_decay: 0.0}; first wins."""
    scale_lr: ScaleLR = ScaleLR.NONE
    """How the rate follows batch.items. Changing hardware needs none: it leaves batch.items alone."""
    base_items: int | None = None
    """The batch.items that `lr` was found for; null = not said."""

    def __post_init__(self) -> None:
        check_patterns(self.no_decay, self.groups)
        check_scale(self.scale_lr, self.base_items)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Builds one over a single number: its constructor knows best what it takes."""
        try:
            defaults = self._defaults()
        except (TypeError, ValueError) as error:
            yield Fault(key="optimizer", message=f"{self.target} refuses {dict(self.arguments)}: {error}")
            return
        decays = bool(self.no_decay) or any("weight_decay" in group for group in self.groups)
        if decays and "weight_decay" not in defaults:
            rule = f"{self.target} knows no weight_decay. Drop no_decay and the groups' weight_decay."
            yield Fault(key="optimizer", message=rule)
        rates = self.scale_lr is not ScaleLR.NONE or any("lr_factor" in group for group in self.groups)
        if rates and not isinstance(defaults.get("lr"), int | float):
            rule = f"{self.target} has no lr to multiply. Give one, or drop scale_lr and the groups' lr_factor."
            yield Fault(key="optimizer", message=rule)

    def model_checks(self, spec: "RunSpec") -> Iterable[Callable[[Module], Iterable[Fault]]]:
        """Each group must take a parameter."""
        return group_checks(self.groups)

    def build(self, named_parameters: Iterable[tuple[str, Parameter]], *, items: int) -> torch.optim.Optimizer:
        """Over the parameters that require a gradient."""
        arguments, lr = dict(self.arguments), self._defaults().get("lr")
        if lr is not None and self.scale_lr is not ScaleLR.NONE:
            arguments["lr"] = lr = scaled(lr, self.scale_lr, base_items=self.base_items, items=items)
        groups = parameter_groups(named_parameters, lr=lr, no_decay=self.no_decay, groups=self.groups)
        return self._made(groups, arguments)

    def _defaults(self) -> dict[str, Any]:
        """The settings of a group that has none of its own, the optimizer's defaults among them."""
        return self._made([Parameter(torch.zeros(1))], self.arguments).defaults

    def _made(self, parameters: list[Any], arguments: Mapping[str, Any]) -> torch.optim.Optimizer:
        module, _, name = self.target.rpartition(".")
        optimizer: torch.optim.Optimizer = vars(import_module(module))[name](parameters, **arguments)
        return optimizer
