"""What a checkpoint holds, and where a run stands."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(kw_only=True)
class State:
    """What a checkpoint holds: `tensors`, sharded or whole, and `values` that JSON can say, alike on every rank."""

    tensors: dict[str, "Tensor"] = field(default_factory=dict)
    """By dotted name: model.<parameter>, optimizer.<parameter>.<key>, callback.<name>.<key>, rng.rank_<n>.<key>"""
    values: dict[str, Any] = field(default_factory=dict)


class StoredTensor(NamedTuple):
    """A tensor in a checkpoint."""

    shape: tuple[int, ...]
    dtype: "torch.dtype"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands."""

    step: int
    """Optimizer steps done."""
    position: int
    """Items consumed since the run began, over all epochs."""
