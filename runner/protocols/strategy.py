"""The group `strategy`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from runner.protocols.hooks import Loss
from runner.protocols.mesh import Axes
from runner.protocols.part import Part
from runner.protocols.precision import Precision
from runner.protocols.state import State, StoredTensor
from runner.protocols.step import Clip, MicroBatch, MicroBatchLoss, StepBatches, StepLoss, Update
from runner.protocols.world import World

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer as TorchOptimizer


class Trainable(Protocol):
    """Model and optimizer as they live on the ranks: the engine's only handle on them. All methods are collective."""

    def forward_backward(self, batches: StepBatches) -> StepLoss:
        """Forward and backward every round; gradients are summed over rounds and ranks, divided by `update`."""
        ...

    def update(self, *, measure: bool) -> Update:
        """Divide by the step's count, clip, step, and clear the gradients. `measure` asks for the gradient's norm."""
        ...

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """The hook's loss on each, without gradients, the model in evaluation mode until the last was taken."""
        ...

    def state(self) -> State:
        """Model and optimizer by the model's own names. Tensors are the live ones, not copies."""
        ...

    def load_state(self, read: Callable[[State], None], stored: Mapping[str, StoredTensor]) -> None:
        """Continue from a checkpoint.

        Args:
            read: fills the tensors of the state that it is given in place, and its values.
            stored: what the checkpoint holds, by name.

        Raises:
            CheckpointError: names what is missing, unexpected or misshapen; all of it.
        """
        ...

    @property
    def optimizer(self) -> "TorchOptimizer":
        """What a schedule moves."""
        ...

    @property
    def model(self) -> "Module":
        """The user's model, for callbacks and hooks; perhaps sharded, never wrapped."""
        ...


class Strategy(Part, Protocol):
    """How model and optimizer live on the ranks."""

    def axes(self, num_ranks: int) -> Axes:
        """The mesh for so many ranks.

        Raises:
            ValueError: they cannot be arranged so; the message says which numbers can.
        """
        ...

    def prepare(
        self,
        *,
        build_model: Callable[[], "Module"],
        build_optimizer: Callable[[Iterable[tuple[str, "Parameter"]]], "TorchOptimizer"],
        loss: Callable[["Module", Any], "Loss | Tensor"],
        precision: Precision,
        clip: Clip,
        world: World,
    ) -> Trainable:
        """Build the model and its optimizer and place them. Collective."""
        ...
