"""Gather every tensor on rank 0, a batch at a time, and write them into one file."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from runner.checkpoint.plan import RankPlan, describe, plan_tensors
from runner.checkpoint.save import Written
from runner.checkpoint.writer import BATCH_BYTES, Payload, Piece, file_order, size_of, write_payload
from runner.protocols import World
from runner.storage.memory import DTYPES, on_host
from runner.storage.rank0 import on_rank_0

FILE = "state.safetensors"
Boxes = dict[str, list[tuple[Piece, Tensor]]]
"""What one rank holds, by the tensor's name."""


def write_gathered(world: World, path: Path, tensors: Mapping[str, Tensor]) -> Written:
    """Write all tensors into one file of a directory. Collective.

    No rank holds more from other ranks than one batch, or the largest tensor.

    Raises:
        CheckpointError: rank 0 could not write, or a rank holds something that cannot be stored.
    """
    planned = plan_tensors(world, tensors, path, spread=False)
    mine = {item.index.fqn for item in planned.items} if not world.is_main else set()
    on_other_ranks = set().union(*world.gather_objects(mine))
    pieces = world.broadcast_object(sorted(planned.whole.values(), key=lambda one: file_order(one.dtype)))
    gathered = _gathered(world, planned, pieces, on_other_ranks)

    def write() -> Payload:
        try:
            return write_payload(path, FILE, pieces, gathered)
        finally:
            for _ in gathered:  # after a write error: the other ranks still take part
                pass

    if not world.is_main:
        for _ in gathered:
            pass
    share = on_rank_0(world, write, path=path / FILE)
    return describe(planned.whole, share.chunks) if world.is_main else {}, share.files


def _gathered(
    world: World, planned: RankPlan, pieces: Sequence[Piece], on_other_ranks: Collection[str]
) -> Iterator[Tensor]:
    """Each tensor whole, on rank 0. The other ranks send what they hold, and get scalars instead. Collective."""
    mine: dict[str, list[int]] = {}
    for number, item in enumerate(planned.items):
        mine.setdefault(item.index.fqn, []).append(number)
    own = planned.pieces
    for batch in _batches(pieces):
        held: Boxes = {piece.name: [(own[n], planned.tensor(n)) for n in mine.get(piece.name, ())] for piece in batch}
        asked = [piece.name for piece in batch if piece.name in on_other_ranks]
        others: Sequence[Boxes] = []
        if asked:
            others = world.gather_objects({} if world.is_main else {name: _sendable(held[name]) for name in asked})
        for piece in batch:
            boxes = held[piece.name] + [box for boxes in others for box in boxes.get(piece.name, ())]
            yield _assemble(piece, boxes) if world.is_main else torch.tensor(0)


def _batches(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        if batch and size + size_of(piece) > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += size_of(piece)
    if batch:
        yield batch


def _sendable(boxes: list[tuple[Piece, Tensor]]) -> list[tuple[Piece, Tensor]]:
    """Copies, since a view is pickled with its whole storage."""
    return [(piece, on_host(tensor).clone()) for piece, tensor in boxes]


def _assemble(piece: Piece, boxes: Sequence[tuple[Piece, Tensor]]) -> Tensor:
    if len(boxes) == 1 and boxes[0][0].shape == piece.shape:
        return boxes[0][1]
    whole = torch.empty(piece.shape, dtype=DTYPES[piece.dtype])
    assert sum(tensor.numel() for _, tensor in boxes) == whole.numel(), piece
    for box, tensor in boxes:
        target = whole
        for dim, (offset, length) in enumerate(zip(box.offset, box.shape, strict=True)):
            target = target.narrow(dim, offset, length)
        target.copy_(tensor.detach())
    return whole
