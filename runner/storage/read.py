"""Fill tensors from a checkpoint, with torch's load planner.

Importing torch.distributed.checkpoint takes half a second, so this file is imported only when something is read.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load

from runner.protocols import World
from runner.storage.format import File, TensorMetadata
from runner.storage.memory import DTYPES, dtype_name
from runner.storage.reader import TensorReader
from runner.storage.torch_errors import translated


def read_tensors(
    world: World,
    path: Path,
    tensors: dict[str, Tensor],
    *,
    metadata: Mapping[str, TensorMetadata],
    files: Mapping[str, File],
) -> None:
    """Fill the tensors of every rank from a checkpoint, in place. Collective.

    Raises:
        CheckpointError: a payload file is missing, truncated or corrupted; the tensors may have been overwritten.
    """
    reader = TensorReader(path, metadata=metadata, files=files)
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with translated(path):
        load(tensors, storage_reader=reader, planner=planner, no_dist=world.size == 1)


def mismatches(tensors: Mapping[str, Tensor], metadata: Mapping[str, TensorMetadata]) -> Iterator[str]:
    """What keeps these tensors from being filled from that checkpoint, a phrase for each."""
    for name, tensor in tensors.items():
        stored = metadata.get(name)
        if stored is None:
            yield f"{name} is missing"
        elif stored.shape != tuple(tensor.shape):
            yield f"{name} has shape {list(stored.shape)}, here {list(tensor.shape)}"
        elif not _casts(DTYPES[stored.dtype], tensor.dtype):
            yield f"{name} has dtype {stored.dtype}, here {dtype_name(tensor.dtype)}"


def _casts(stored: torch.dtype, here: torch.dtype) -> bool:
    """Floating dtypes convert into each other, so that a run may continue in another precision; no others do."""
    return stored == here or (stored.is_floating_point and here.is_floating_point)
