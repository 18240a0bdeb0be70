"""The groups `optimizer` and `schedule`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from runner.protocols.part import Part

if TYPE_CHECKING:
    import torch
    from torch.nn import Parameter
    from torch.optim import Optimizer as TorchOptimizer


class Optimizer(Part, Protocol):
    """Which optimizer is used, with which settings for which parameters."""

    def build(self, named_parameters: Iterable[tuple[str, "Parameter"]], *, items: int) -> "TorchOptimizer":
        """Build the optimizer over parameters by the model's names, for steps of this many items."""
        ...


GraphUpdate = Callable[
    ["torch.optim.Optimizer", Mapping["torch.Tensor", "torch.Tensor"], Sequence["torch.Tensor"]], None
]
"""Updates parameters and state in place, given the optimizer, gradients by parameter, and the rate of each group."""


@runtime_checkable
class UpdatesInGraph(Protocol):
    """An optimizer whose update can be part of a compiled step."""

    def graph_update(self) -> GraphUpdate:
        """Return a function that torch.compile can trace; the state is what one step of the optimizer has made."""
        ...


class Scheduler(Protocol):
    """Adjusts learning rates after each optimizer step."""

    def step(self) -> None:
        """Advance by one optimizer step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state, which JSON must be able to represent."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        ...


class Schedule(Part, Protocol):
    """How learning rates change over the steps of a run."""

    def build(self, optimizer: "TorchOptimizer", *, steps: int) -> Scheduler:
        """Build the scheduler for a run of this many optimizer steps."""
        ...
