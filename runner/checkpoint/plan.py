"""Who writes what, agreed among the ranks by torch's planner.

Importing torch.distributed.checkpoint takes half a second, so that this file is imported by who saves or loads, when it
does.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
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
from runner.storage.format import SAFETENSORS_TYPES, Chunk, Described
from runner.storage.memory import dtype_name
from runner.storage.torch_errors import translated


class Planned(NamedTuple):
    """This rank's part of a save."""

    items: Sequence[WriteItem]
    """In the order of a file."""
    state: dict[str, Tensor]
    """What the items are parts of: live."""
    whole: Mapping[str, Piece]
    """Every tensor of the checkpoint, on rank 0; empty on the others."""

    @property
    def pieces(self) -> list[Piece]:
        """What this rank writes."""
        return [_piece(item) for item in self.items]

    def tensors(self) -> Iterator[Tensor]:
        """Their contents: live memory, one after the other."""
        return (self.tensor(number) for number in range(len(self.items)))

    def tensor(self, number: int) -> Tensor:
        """The contents of one of the items: live memory."""
        data = find_state_dict_object(self.state, self.items[number].index)
        assert isinstance(data, Tensor)
        return data


@final
class LastPlan:
    """Plans anew only if something has changed since the last time, on any rank.

    Of one state after another, 160 tensors on each of 2 ranks, planning took as long as copying 0.5 GB of them.
    """

    def __init__(self) -> None:
        self._outline: list[object] | None = None
        self._last = Planned((), {}, {})

    def plan(self, world: World, tensors: Mapping[str, Tensor], path: Path) -> Planned:
        """As `plan_tensors`, spread. Collective.

        Raises:
            CheckpointError: a rank has something that cannot be stored.
        """
        outline = _outline(tensors)
        if world.any(outline != self._outline):
            self._outline = None
            self._last = plan_tensors(world, tensors, path, spread=True)._replace(state={})
            self._outline = outline
        return self._last._replace(state=dict(tensors))


def _outline(tensors: Mapping[str, Tensor]) -> list[object]:
    """All that this rank's part of a plan depends on: where that is equal on every rank, so is the plan."""
    outline: list[object] = []
    for name, tensor in tensors.items():
        if type(tensor) is DTensor and type(local := tensor.to_local()) is Tensor:
            outline.append((name, tensor.shape, local.dtype, tensor.device_mesh, tensor.placements))
        elif type(tensor) in (Tensor, Parameter):
            outline.append((name, tensor.shape, tensor.dtype))
        else:  # it says for itself what is to be written
            outline += create_default_local_save_plan({name: tensor}, is_coordinator=False).items
    return outline


def plan_tensors(world: World, tensors: Mapping[str, Tensor], path: Path, *, spread: bool) -> Planned:
    """Agree who writes what. Collective.

    Args:
        path: of what is to be written, for messages.
        spread: what several ranks hold alike is divided among them; else the lowest of them has it.

    Raises:
        CheckpointError: a rank has something that cannot be stored.
    """
    planner = DefaultSavePlanner(
        flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=not spread
    )
    plan, state = _Plan(), dict(tensors)
    with translated(path):
        save(state, storage_writer=plan, planner=planner, no_dist=world.size == 1)
    return Planned(sorted(plan.items, key=lambda item: file_order(_piece(item).dtype)), state, plan.whole)


def describe(whole: Mapping[str, Piece], chunks: Sequence[tuple[str, Chunk]]) -> dict[str, Described]:
    """What the checkpoint holds, from what its ranks have written."""
    of_tensor: dict[str, list[Chunk]] = {name: [] for name in whole}
    for name, chunk in chunks:
        of_tensor[name].append(chunk)
    return {name: Described(one.dtype, one.shape, tuple(of_tensor[name])) for name, one in whole.items()}


@final
class _Plan(StorageWriter):
    """Takes the plan where a writer would write it."""

    def __init__(self) -> None:
        self.items: Sequence[WriteItem] = ()
        self.whole: dict[str, Piece] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing: a plan is of one save."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing: the directory is there."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan, if it can be stored.

        Raises:
            CheckpointError: something in it is not a tensor, or of a type that safetensors does not have.
        """
        for item in plan.items:
            _check(item)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans as they are: each rank knows the name of its file."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Note this rank's items."""
        self.items = plan.items
        future: Future[list[WriteResult]] = Future()
        future.set_result([])
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Note what the whole checkpoint will hold: rank 0 only."""
        for name, stored in metadata.state_dict_metadata.items():
            assert isinstance(stored, TensorStorageMetadata), name
            shape = tuple(stored.size)
            self.whole[name] = Piece(name, dtype_name(stored.properties.dtype), (0,) * len(shape), shape)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """No: a plan is made for a directory, never found for one."""
        return False


def _check(item: WriteItem) -> None:
    name = item.index.fqn
    if item.type is WriteItemType.BYTE_IO:
        rule = "Only tensors go into State.tensors; put what JSON can say into State.values."
        raise CheckpointError(f"state.tensors {name!r} cannot be saved: it is not a tensor. {rule}")
    dtype = dtype_name(_dtype(item))
    if dtype not in SAFETENSORS_TYPES:
        rule = f"Types that can be saved: {', '.join(SAFETENSORS_TYPES)}."
        raise CheckpointError(f"state.tensors {name!r} cannot be saved: safetensors has no {dtype}. {rule}")


def _dtype(item: WriteItem) -> torch.dtype:
    assert item.tensor_data is not None, item.index
    return item.tensor_data.properties.dtype


def _piece(item: WriteItem) -> Piece:
    assert item.tensor_data is not None, item.index
    box = item.tensor_data.chunk
    return Piece(item.index.fqn, dtype_name(_dtype(item)), tuple(box.offsets), tuple(box.sizes))
