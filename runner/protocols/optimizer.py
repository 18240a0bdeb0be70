"""The groups `optimizer` and `schedule`."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from runner.protocols.part import Part

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim import Optimizer as TorchOptimizer


class Optimizer(Part, Protocol):
    """Which optimizer is used, with which settings for which parameters."""

    def build(self, named_parameters: Iterable[tuple[str, "Parameter"]], *, items: int) -> "TorchOptimizer":
        """Build the optimizer over parameters by the model's names, for steps of this many items."""
        ...


class GraphUpdate(NamedTuple):
    """An optimizer's update inside a compiled graph."""

    state: tuple[str, ...]
    """The tensors of each parameter's state that it needs; one step of the optimizer makes them."""
    update: Callable[
        [list["Tensor"], list["Tensor"], list[Mapping[str, "Tensor"]], Mapping[str, Any], "Tensor"],
        None,
    ]
    """Updates the parameters of a group and their state in place, given their gradients, their states, the settings of
    the group, and its learning rate, a scalar.
    """


@runtime_checkable
class UpdatesInGraph(Protocol):
    """An optimizer whose update can be part of a compiled step."""

    def graph_update(self) -> GraphUpdate:
        """Return the update, which torch.compile can trace."""
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
