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
from runner.storage.format import Described, File
from runner.storage.memory import DTYPES
from runner.storage.reader import TensorReader
from runner.storage.torch_errors import translated


def read_tensors(
    world: World,
    path: Path,
    tensors: dict[str, Tensor],
    *,
    described: Mapping[str, Described],
    files: Mapping[str, File],
) -> None:
    """Fill the tensors of every rank from a checkpoint, in place. Collective.

    Raises:
        CheckpointError: a payload file is missing, truncated or corrupted; the tensors are then filled in part.
    """
    reader = TensorReader(path, described=described, files=files)
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with translated(path):
        load(tensors, storage_reader=reader, planner=planner, no_dist=world.size == 1)


def misfits(tensors: Mapping[str, Tensor], described: Mapping[str, Described]) -> Iterator[str]:
    """What about these tensors keeps them from being filled from that checkpoint."""
    for name, tensor in tensors.items():
        stored = described.get(name)
        if stored is None:
            yield f"{name} is not in it"
        elif stored.shape != tuple(tensor.shape):
            yield f"{name} has shape {list(stored.shape)} in it, here {list(tensor.shape)}"
        elif not _casts(DTYPES[stored.dtype], tensor.dtype):
            yield f"{name} has type {stored.dtype} in it, here {tensor.dtype}"


def _casts(stored: torch.dtype, here: torch.dtype) -> bool:
    """A run may be continued in another precision, but a counter is not a weight."""
    return stored == here or (stored.is_floating_point and here.is_floating_point)
