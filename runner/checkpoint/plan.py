"""Which rank writes what, planned by torch's save planner.

Importing torch.distributed.checkpoint takes half a second, so this file is imported only when something is saved.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_local_save_plan
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.distributed.checkpoint.utils import find_state_dict_object
from torch.distributed.tensor import DTensor
from torch.futures import Future
from torch.nn import Parameter

from runner.checkpoint.writer import Piece, file_order
from runner.errors import CheckpointError
from runner.protocols import World
from runner.protocols.state import Swappable
from runner.storage.format import SAFETENSORS_TYPES, Chunk, TensorMetadata
from runner.storage.memory import dtype_name
from runner.storage.torch_errors import translated


class RankPlan(NamedTuple):
    """What one rank writes."""

    items: Sequence[WriteItem]
    """In file order."""
    state: dict[str, Tensor]
    """The live tensors that the items are parts of."""
    whole: Mapping[str, Piece]
    """Every tensor of the checkpoint, on rank 0; empty on other ranks."""

    @property
    def pieces(self) -> list[Piece]:
        """Type and place of each item."""
        return [_piece(item) for item in self.items]

    def tensor(self, number: int) -> Tensor:
        """The contents of one item, in live memory."""
        data = find_state_dict_object(self.state, self.items[number].index)
        assert isinstance(data, Tensor)
        return data

    def is_swapped(self, number: int) -> bool:
        """Whether `tensor` reads one item from a disk."""
        whole = self.state[self.items[number].index.fqn]
        return isinstance(whole, Swappable) and whole.is_swapped


@final
class PlanCache:
    """Keeps the last plan until something changes on any rank.

    With 160 tensors on each of 2 ranks, planning took as long as copying 0.5 GB of them.
    """

    def __init__(self) -> None:
        self._outline: list[object] | None = None
        self._last = RankPlan((), {}, {})

    def plan(self, world: World, tensors: Mapping[str, Tensor], path: Path) -> RankPlan:
        """As `plan_tensors` with spread=True. Collective.

        Raises:
            CheckpointError: a rank holds something that cannot be stored.
        """
        outline = _outline(tensors)
        if world.any(outline != self._outline):
            self._outline = None
            self._last = plan_tensors(world, tensors, path, spread=True)._replace(state={})
            self._outline = outline
        return self._last._replace(state=dict(tensors))


def _outline(tensors: Mapping[str, Tensor]) -> list[object]:
    """Everything that the plan depends on, of this rank: the plan changes only if this does on some rank."""
    outline: list[object] = []
    for name, tensor in tensors.items():
        if type(tensor) is DTensor and type(local := tensor.to_local()) is Tensor:
            outline.append((name, tensor.shape, local.dtype, tensor.device_mesh, tensor.placements))
        elif type(tensor) in (Tensor, Parameter):
            outline.append((name, tensor.shape, tensor.dtype))
        else:  # plans its own items
            outline += create_default_local_save_plan({name: tensor}, is_coordinator=False).items
    return outline


def plan_tensors(world: World, tensors: Mapping[str, Tensor], path: Path, *, spread: bool) -> RankPlan:
    """Plan which rank writes what. Collective.

    Args:
        path: of the checkpoint, for messages.
        spread: divide the tensors that several ranks hold among them; otherwise the lowest rank writes all of these.

    Raises:
        CheckpointError: a rank holds something that cannot be stored.
    """
    planner = DefaultSavePlanner(
        flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=not spread
    )
    plan, state = _Plan(), dict(tensors)
    with translated(path):
        save(state, storage_writer=plan, planner=planner, no_dist=world.size == 1)
    return RankPlan(sorted(plan.items, key=lambda item: file_order(_piece(item).dtype)), state, plan.whole)


def describe(whole: Mapping[str, Piece], chunks: Sequence[tuple[str, Chunk]]) -> dict[str, TensorMetadata]:
    """The metadata of all tensors, from the chunks that the ranks have written."""
    of_tensor: dict[str, list[Chunk]] = {name: [] for name in whole}
    for name, chunk in chunks:
        of_tensor[name].append(chunk)
    return {name: TensorMetadata(one.dtype, one.shape, tuple(of_tensor[name])) for name, one in whole.items()}


@final
class _Plan(StorageWriter):
    """Records the plan instead of writing anything."""

    def __init__(self) -> None:
        self.items: Sequence[WriteItem] = ()
        self.whole: dict[str, Piece] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Do nothing: this object serves one save."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Do nothing: nothing is written here."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the plan unchanged.

        Raises:
            CheckpointError: an item is not a tensor, or has a dtype that safetensors lacks.
        """
        for item in plan.items:
            _check(item)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Return the plans unchanged."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Record this rank's items."""
        self.items = plan.items
        future: Future[list[WriteResult]] = Future()
        future.set_result([])
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Record every tensor of the checkpoint. Called on rank 0 only."""
        for name, stored in metadata.state_dict_metadata.items():
            assert isinstance(stored, TensorStorageMetadata), name
            shape = tuple(stored.size)
            self.whole[name] = Piece(name, dtype_name(stored.properties.dtype), (0,) * len(shape), shape)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return False: torch never chooses this writer for a path by itself."""
        return False


def _check(item: WriteItem) -> None:
    name = item.index.fqn
    if item.type is WriteItemType.BYTE_IO:
        rule = "Put what JSON can represent into the values of the state."
        raise CheckpointError(f"{name} cannot be saved: it is not a tensor. {rule}")
    if not name.isprintable():
        raise CheckpointError(f"{name!r} cannot be saved: the name is not printable. Rename the parameter.")
    dtype = dtype_name(_dtype(item))
    if dtype not in SAFETENSORS_TYPES:
        rule = f"Use one of {', '.join(SAFETENSORS_TYPES)}."
        raise CheckpointError(f"{name} cannot be saved: safetensors has no dtype {dtype}. {rule}")


def _dtype(item: WriteItem) -> torch.dtype:
    assert item.tensor_data is not None, item.index
    return item.tensor_data.properties.dtype


def _piece(item: WriteItem) -> Piece:
    assert item.tensor_data is not None, item.index
    box = item.tensor_data.chunk
    return Piece(item.index.fqn, dtype_name(_dtype(item)), tuple(box.offsets), tuple(box.sizes))
