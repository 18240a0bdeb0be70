"""The state of a run, as checkpoints store it, and its progress."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
Named = dict[str, T]
"""By the model's own parameter name."""


@dataclass(kw_only=True)
class State(Generic[T]):
    """The state of a run, typed by owner: `State[Tensor]` has the tensors, `State[StoredTensor]` describes them.

    Tensors may be sharded. Everything else is in `values`, which JSON can represent and which is the same on every
    rank. Only `storage/names.py` knows the names in a checkpoint's files.
    """

    models: dict[str, dict[str, T]] = field(default_factory=dict)
    """By model, then by parameter or persistent buffer. The only model of a run is called `model`."""
    optimizers: dict[str, dict[str, dict[str, T]]] = field(default_factory=dict)
    """By model, then by parameter, then by the optimizer's own key (exp_avg, …)."""
    callbacks: dict[str, dict[str, T]] = field(default_factory=dict)
    """By callback, then by the callback's own key."""
    rng: dict[int, dict[str, T]] = field(default_factory=dict)
    """By a rank's index along the axes that draw different random numbers, then by generator."""
    values: dict[str, Any] = field(default_factory=dict)
    replicas: dict[int, "State[T]"] = field(default_factory=dict)
    """By a rank's index along the independent axes: what these ranks hold that others do not. It has no values."""
    frozen: dict[str, set[str]] = field(default_factory=dict)
    """By model: its parameters that no optimizer trains, which a checkpoint need not write again. Not stored."""
    buffers: dict[str, set[str]] = field(default_factory=dict)
    """By model: its persistent buffers, which a forward may change. Not stored."""


MODEL = "model"
"""The name of the model, and of its optimizer, in a run with one model."""


class StoredTensor(NamedTuple):
    """A tensor in a checkpoint, without its values."""

    shape: tuple[int, ...]
    dtype: "torch.dtype"


class SavedState(Protocol):
    """A committed checkpoint, open for reading."""

    @property
    def path(self) -> Path:
        """Its directory, for messages."""
        ...

    @property
    def stored(self) -> State[StoredTensor]:
        """The names, shapes and dtypes of its tensors."""
        ...

    def read(self, state: "State[Tensor]") -> None:
        """Load the tensors of this state in place and replace its values. Collective.

        Raises:
            CheckpointError: the checkpoint lacks a tensor, has it with another shape or kind, or is corrupted.
        """
        ...


@runtime_checkable
class Stateful(Protocol):
    """An object with a small state for checkpoints, as in torch.distributed.checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """The state, which JSON must be able to represent; the same on every rank."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state; an empty state means a fresh start."""
        ...


@runtime_checkable
class Swappable(Protocol):
    """A tensor whose elements may be on a disk."""

    @property
    def is_swapped(self) -> bool:
        """Whether each access reads them into memory, which only the thread that trains may do."""
        ...


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    step: int
    """Optimizer steps completed."""
    position: int
    """Items consumed since the run began, over all epochs."""


def of_model(model: str, key: str) -> str:
    """The key in `State.values` of something that each model has; without the model's name if it is the only one."""
    return key if model == MODEL else f"{model}.{key}"
