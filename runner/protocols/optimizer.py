"""The groups `optimizer` and `schedule`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from runner.protocols.part import Part

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer as TorchOptimizer


class Optimizer(Part, Protocol):
    """Which optimizer, and which parameters it treats how."""

    def build(self, named_parameters: Iterable[tuple[str, "Parameter"]], *, items: int) -> "TorchOptimizer":
        """The optimizer over these parameters, named as the model names them, for steps of so many items."""
        ...


class Scheduler(Protocol):
    """Moves learning rates as optimizer steps go by."""

    def step(self) -> None:
        """One optimizer step was taken."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What JSON can say."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there."""
        ...


class Schedule(Part, Protocol):
    """How learning rates move over the steps of a run."""

    def build(self, optimizer: "TorchOptimizer", *, steps: int) -> Scheduler:
        """For a run of so many optimizer steps."""
        ...
