"""Read tensors from their files, each verified: straight into the target's memory where its layout is the same."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, final

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from runner.storage.decode import chunks_by_file
from runner.storage.format import Chunk, File, TensorMetadata
from runner.storage.memory import DTYPES, is_contiguous_on_host, view_bytes
from runner.storage.payload import open_payload, read_in_parallel, read_verified


@final
class TensorReader(StorageReader):
    """Reads what a load plan asks for from the payload files of one checkpoint, each chunk whole and once."""

    def __init__(self, path: Path, *, metadata: Mapping[str, TensorMetadata], files: Mapping[str, File]) -> None:
        self.path = path
        self._metadata = metadata
        self._files = files
        # An empty chunk may start where another one does, but is never read.
        self._chunks = {
            (name, chunk.offset): chunk for name, one in metadata.items() for chunk in one.chunks if chunk.bytes
        }
        self._in_file = chunks_by_file(metadata)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Do nothing: a reader serves one load."""

    def read_metadata(self) -> Metadata:
        """Shape, dtype and chunks of each tensor, for the planner."""
        return Metadata({name: _stored(one) for name, one in self._metadata.items()})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the constructor was given everything."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the plan unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans unchanged."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill every tensor of the plan.

        Raises:
            CheckpointError: a file is missing, truncated or corrupted; tensors may have been overwritten, even with
                corrupted bytes.
        """
        wanted: dict[str, dict[Chunk, list[ReadItem]]] = {}
        for item in plan.items:
            assert item.storage_index.offset is not None, item.storage_index
            chunk = self._chunks[item.storage_index.fqn, tuple(item.storage_index.offset)]
            wanted.setdefault(chunk.file, {}).setdefault(chunk, []).append(item)
        for name, chunks in wanted.items():
            self._read_file(name, chunks, planner)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return False: torch never chooses this reader for a path by itself."""
        return False

    def _read_file(self, name: str, wanted: Mapping[Chunk, list[ReadItem]], planner: LoadPlanner) -> None:
        path = self.path / name
        # Here, since a strategy's tensors may not be asked for their memory by several threads.
        targets = {chunk: [planner.resolve_tensor(item).detach() for item in items] for chunk, items in wanted.items()}

        def read(chunk: Chunk) -> None:
            self._read_chunk(file, path, chunk, wanted[chunk], targets[chunk])

        with open_payload(path, chunks=self._in_file[name], expected=self._files[name]) as file:
            read_in_parallel(sorted(wanted, key=lambda chunk: chunk.start), read)
        for chunk, items in wanted.items():
            for item, target in zip(items, targets[chunk], strict=True):
                planner.commit_tensor(item, target)

    def _read_chunk(
        self, file: BinaryIO, path: Path, chunk: Chunk, items: Sequence[ReadItem], targets: Sequence[Tensor]
    ) -> None:
        dtype = DTYPES[self._metadata[items[0].storage_index.fqn].dtype]
        if len(items) == 1 and tuple(items[0].lengths) == chunk.shape and _same_layout(targets[0], dtype):
            read_verified(file, path, chunk, view_bytes(targets[0]))
        else:
            whole = torch.empty(chunk.shape, dtype=dtype)
            read_verified(file, path, chunk, view_bytes(whole))
            for item, target in zip(items, targets, strict=True):
                target.copy_(_cut(whole, item))


def _stored(one: TensorMetadata) -> TensorStorageMetadata:
    boxes = [ChunkStorageMetadata(torch.Size(chunk.offset), torch.Size(chunk.shape)) for chunk in one.chunks]
    return TensorStorageMetadata(TensorProperties(dtype=DTYPES[one.dtype]), torch.Size(one.shape), boxes)


def _same_layout(target: Tensor, dtype: torch.dtype) -> bool:
    return target.dtype == dtype and is_contiguous_on_host(target)


def _cut(whole: Tensor, item: ReadItem) -> Tensor:
    for dim, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
        whole = whole.narrow(dim, offset, length)
    return whole
