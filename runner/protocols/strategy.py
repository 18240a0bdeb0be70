"""The group `strategy`: how models and optimizers are distributed over ranks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from runner.protocols.hooks import Loss
from runner.protocols.mesh import Axes
from runner.protocols.optimizer import GraphUpdate
from runner.protocols.part import Part
from runner.protocols.precision import Precision
from runner.protocols.state import SavedState, State
from runner.protocols.step import Clip, MicroBatch, MicroBatchLoss, StepBatches, StepLoss, Update
from runner.protocols.world import World

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer as TorchOptimizer


class StepGraphs(NamedTuple):
    """What a strategy needs to compile a whole step."""

    compile: "Callable[[Callable[..., Any]], Callable[..., Any]]"
    """Compile a function as a single graph, on its first call."""
    update: GraphUpdate
    """The optimizer's update, inside a graph."""


@dataclass(frozen=True, kw_only=True)
class Builder:
    """Everything from which a strategy builds models and optimizers. A strategy calls these in the order it needs.

    `build_model` comes first. torchtitan's order for the rest is: tensor plan, recompute, compile, shard.
    """

    build_model: "Callable[[], Module]"
    """The user's model in this run's precision; the same weights on every rank. May be called on the meta device."""
    recompute: "Callable[[Module], None]"
    """Apply activation checkpointing to the blocks of a model, in place."""
    compile: "Callable[[Module], None]"
    """Apply torch.compile to a model or its blocks, in place."""
    build_optimizer: "Callable[[Iterable[tuple[str, Parameter]]], TorchOptimizer]"
    """Builds the optimizer over parameters, given by the model's names."""
    loss: "Callable[[Module, Any, int], Loss | Tensor]"
    """The user's loss hook, on a micro-batch: its batch, and how many of its items count."""
    predicts: bool = False
    """Whether `loss` is a predict hook instead: without gradients, it may call the model any number of times."""
    precision: Precision
    clip: Clip
    step_graphs: StepGraphs | None = None
    """Compiles steps as a whole, for a strategy that says `compiles_steps`; None = do not."""
    build_unset: "Callable[[Callable[[], Module]], Module] | None" = None
    """Given `build_model`, builds a model whose initial weights are never used; None = they are."""

    def build_whole_model(self) -> "Module":
        """The model after `recompute` and `compile`, for strategies that do nothing in between."""
        model = self.build_model() if self.build_unset is None else self.build_unset(self.build_model)
        self.recompute(model)
        self.compile(model)
        return model


class Placed(Protocol):
    """Models distributed over the ranks, without optimizers. All methods are collective."""

    @property
    def models(self) -> "Mapping[str, Module]":
        """The user's models by name, possibly sharded, never wrapped. A run's only model is called `model`."""
        ...

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """Call the loss hook on each, without gradients. Models stay in evaluation mode until it ends."""
        ...

    def state_dict(self) -> "State[Tensor]":
        """The live tensors, not copies, by the models' own names."""
        ...

    def load_state_dict(self, saved: SavedState) -> None:
        """Continue from a checkpoint.

        Raises:
            CheckpointError: lists every tensor that is missing, unexpected or of another shape.
        """
        ...


class Trainable(Placed, Protocol):
    """Models and their optimizers: the engine's only handle on them. All methods are collective.

    A trainable owns the gradients of its step: no other code reads, clears or counts them.
    """

    def forward_backward(self, batches: StepBatches) -> StepLoss:
        """Forward and backward of every micro-batch; gradients are summed, and divided by `update`."""
        ...

    def gradients_finite(self) -> "Tensor":
        """Whether the gradients that `forward_backward` left on this rank are finite: a boolean scalar."""
        ...

    def update(self, *, measure: bool) -> Update:
        """Divide by the step's count, clip, step and clear the gradients. With `measure`, return its norm."""
        ...

    def discard(self) -> None:
        """Clear the gradients that `forward_backward` left, as if the step had not been taken."""
        ...

    @property
    def optimizers(self) -> "Mapping[str, TorchOptimizer]":
        """The optimizers that schedules adjust, by the name of the model that each one trains."""
        ...

    @property
    def exchange_bytes(self) -> int:
        """Bytes of the buffers in which this rank exchanges gradients with others; 0 if gradients are views of them."""
        ...


@runtime_checkable
class StepsAtOnce(Protocol):
    """A trainable that takes a whole step in one call. It can take one by its other methods as well."""

    def take_step(self, batches: StepBatches, *, measure: bool) -> tuple[StepLoss, Update]:
        """Forward, backward, division, clipping and update. With `measure`, return the norm, too. Collective."""
        ...


@runtime_checkable
class CompilesSteps(Protocol):
    """A strategy whose trainables step at once if `Builder.step_graphs` is given; for any other, that is a fault."""

    compiles_steps: ClassVar[bool]


@runtime_checkable
class SparesCompiler(Protocol):
    """A strategy under which a run that compiles nothing does not import torch's compiler (a second of CPU time)."""

    spares_compiler: ClassVar[bool]


class Strategy(Part, Protocol):
    """How models and optimizers are distributed over ranks."""

    def axes(self, num_ranks: int) -> Axes:
        """The mesh for this many ranks.

        Raises:
            ValueError: this number of ranks is not possible; the message says which are.
        """
        ...

    def place(self, builder: Builder, world: World) -> Placed:
        """Build and place the model, without an optimizer: to evaluate, predict or export. Collective."""
        ...

    def prepare(self, builder: Builder, world: World) -> Trainable:
        """Place the model, then build its optimizer. Collective."""
        ...
