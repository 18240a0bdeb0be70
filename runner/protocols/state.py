"""What a checkpoint holds, and where a run stands."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
Named = dict[str, T]
"""By the model's own parameter name."""


@dataclass(kw_only=True)
class State(Generic[T]):
    """The state of a run, typed by owner: `State[Tensor]` holds it, `State[StoredTensor]` describes it.

    Tensors may be sharded or whole. Everything else is in `values`: what JSON can represent, the same on every rank.
    How the parts are named in a checkpoint's files is known to `storage/names.py` alone.
    """

    models: dict[str, dict[str, T]] = field(default_factory=dict)
    """By model, then by parameter or persistent buffer. The model of a run that has one is called `model`."""
    optimizers: dict[str, dict[str, dict[str, T]]] = field(default_factory=dict)
    """By model, then by parameter, then by the optimizer's own key (exp_avg, …)."""
    callbacks: dict[str, dict[str, T]] = field(default_factory=dict)
    """By callback, then by a key of its own."""
    rng: dict[int, dict[str, T]] = field(default_factory=dict)
    """By a rank's index along the axes that draw different random numbers, then by generator."""
    values: dict[str, Any] = field(default_factory=dict)


MODEL = "model"
"""The name of the model in a run that has one, and of its optimizer."""


class StoredTensor(NamedTuple):
    """A tensor in a checkpoint, without its values."""

    shape: tuple[int, ...]
    dtype: "torch.dtype"


class SavedState(Protocol):
    """A committed checkpoint, open for reading."""

    @property
    def stored(self) -> State[StoredTensor]:
        """What it holds."""
        ...

    def read(self, state: "State[Tensor]") -> None:
        """Fill the tensors of this state in place and replace its values. Collective.

        Raises:
            CheckpointError: the checkpoint lacks a tensor, or holds one of another shape or kind; or it is corrupted.
        """
        ...


@runtime_checkable
class Stateful(Protocol):
    """Something small that goes into checkpoints; torch.distributed.checkpoint's word for it."""

    def state_dict(self) -> dict[str, Any]:
        """What JSON can represent; the same on every rank."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from there; an empty state means a fresh start."""
        ...


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands."""

    step: int
    """Optimizer steps done."""
    position: int
    """Items consumed since the run began, over all epochs."""


def of_model(model: str, key: str) -> str:
    """The name under which `State.values` holds something that each model has one of: plain for a run that has one."""
    return key if model == MODEL else f"{model}.{key}"
