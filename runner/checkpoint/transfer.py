"""State to and from a directory, under torch's planners. Importing torch.distributed.checkpoint takes half a second, so
that this file is imported by who saves or loads, when it does.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from runner.checkpoint.agree import refusal
from runner.checkpoint.format import Described, File
from runner.checkpoint.memory import DTYPES
from runner.checkpoint.reader import TensorReader
from runner.checkpoint.writer import TensorWriter
from runner.errors import CheckpointError
from runner.protocols import World


def write_tensors(
    world: World, path: Path, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Described], dict[str, File]]:
    """Write every rank's share into a directory. Collective.

    Returns:
        What the checkpoint holds (rank 0; empty on the others), and every rank's payload file.

    Raises:
        CheckpointError: a rank could not write its share, or has something that cannot be stored.
    """
    writer = TensorWriter(path, rank=world.rank)
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with _understood(path):
        save(dict(tensors), storage_writer=writer, planner=planner, no_dist=world.size == 1)
    payloads = world.gather_objects(writer.payload)
    return writer.described, dict(payload for payload in payloads if payload is not None)


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
    with _understood(path):
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


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    """Say in our words what torch says by a CheckpointException, which is a BaseException holding each rank's error."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            yield
    except CheckpointException as exception:
        rank, (error, _) = min(exception.failures.items())
        if isinstance(error, OSError):
            raise refusal(error, path) from exception
        if isinstance(error, CheckpointError):
            raise CheckpointError(*error.args) from exception
        error.add_note(f"on rank {rank}, in checkpoint {path}")
        raise error from exception
