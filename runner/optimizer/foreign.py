"""Any optimizer of torch's shape, named by `_target_`: a class that takes parameter groups and keyword arguments."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, final

import torch
from torch.nn import Parameter

from runner.errors import Fault
from runner.optimizer.groups import check_patterns, decay_groups

if TYPE_CHECKING:
    from runner.spec.run_spec import RunSpec


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

    def __post_init__(self) -> None:
        check_patterns(self.no_decay)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Builds one over a single number: its constructor knows best what it takes."""
        try:
            self.build([("probe", Parameter(torch.zeros(1)))])
        except (TypeError, ValueError) as error:
            yield Fault(key="optimizer", message=f"{self.target} refuses {dict(self.arguments)}: {error}")

    def build(self, named_parameters: Iterable[tuple[str, Parameter]]) -> torch.optim.Optimizer:
        """Over the parameters that require a gradient."""
        module, _, name = self.target.rpartition(".")
        kind = vars(import_module(module))[name]
        optimizer: torch.optim.Optimizer = kind(decay_groups(named_parameters, self.no_decay), **self.arguments)
        return optimizer
