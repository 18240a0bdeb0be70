"""Save the state of two FSDP ranks, compared with raw bytes and torch's distributed checkpoint.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint_ranks.py                       # about three minutes
    OMP_NUM_THREADS=1 python benchmarks/checkpoint_ranks.py --dir /dev/shm        # without a disk

Two processes over gloo hold the shards of a transformer's blocks (fully_shard) and of Adam's two moments of each, and
save in alternation. Prints the median over the rounds of the slowest rank's time, as a ratio to each rank writing the
bytes of its own shards to a separate file, fsynced; and the fastest round in seconds. Everything is on the disk when
the clock stops. The first round, which includes imports, is not counted; it also loads what the runner saved, and
compares it.
"""

import argparse
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from checkpoint import WIDTH, Tensors, remove, save_ours, turn, views
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from runner.protocols import Axes, Axis
from runner.storage.checkpoints import Checkpoints
from runner.storage.names import from_names
from runner.world.group import GroupWorld, join_group

RANKS = 2
AXES = Axes(names=(Axis.SHARD,), sizes=(RANKS,), data=(Axis.SHARD,))


class Block(nn.Module):
    """The parameters of a transformer block, as in checkpoint.py."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"attention": (3 * WIDTH, WIDTH), "out": (WIDTH, WIDTH), "up": (4 * WIDTH, WIDTH), "norm": (WIDTH,)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))


def build_shards(gigabytes: float, mesh: DeviceMesh) -> Tensors:
    """Shard blocks, each as one unit, until this rank has this many gigabytes of parameters and moments."""
    tensors: Tensors = {}
    size = 0
    number = 0
    while size < gigabytes * 1e9:
        block = Block()
        fully_shard(block, mesh=mesh)
        for name, parameter in block.named_parameters():
            shard = parameter.detach()
            assert isinstance(shard, DTensor)
            tensors[f"model.{number}.{name}"] = shard
            for key in ("exp_avg", "exp_avg_sq"):
                tensors[f"optimizer.{number}.{name}.{key}"] = torch.empty_like(shard)
                local(tensors[f"optimizer.{number}.{name}.{key}"]).normal_()
            tensors[f"optimizer.{number}.{name}.step"] = torch.tensor(100.0)
            size += 3 * local(shard).nbytes
        number += 1
    return tensors


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, not copied."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def locals_of(tensors: Tensors) -> Tensors:
    """This rank's part of each tensor."""
    return {name: local(tensor) for name, tensor in tensors.items()}


def save_raw(path: Path, tensors: Tensors, world: GroupWorld) -> None:
    """Write the bytes of this rank's shards, then fsync."""
    path.mkdir(exist_ok=True)
    with (path / f"raw_{world.rank}").open("wb", buffering=0) as file:
        for view in views(locals_of(tensors)):
            file.write(view)
        os.fsync(file.fileno())


def save_dcp(path: Path, tensors: Tensors, world: GroupWorld) -> None:
    """Save with torch's distributed checkpoint and its file writer, which fsyncs."""
    import torch.distributed.checkpoint as dcp

    dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(path))  # type: ignore[attr-defined]  # public


WAYS: dict[str, Callable[[Path, Tensors, GroupWorld], None]] = {
    "raw bytes of each": save_raw,
    "runner, committed": save_ours,
    "DCP's own files": save_dcp,
}


def seconds(world: GroupWorld, action: Callable[[], None]) -> list[float]:
    """Seconds that each rank takes; all start together."""
    world.barrier()
    begin = time.perf_counter()
    action()
    return world.gather_objects(time.perf_counter() - begin)


def check_saved(path: Path, tensors: Tensors, world: GroupWorld) -> None:
    """Load the committed checkpoint and compare it with the state."""
    checkpoints = Checkpoints(path / "checkpoints", world)
    latest = checkpoints.latest()
    assert latest is not None
    target = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    checkpoints.open(latest).read(from_names(target))
    assert all(torch.equal(local(target[name]), local(tensor)) for name, tensor in tensors.items())


def clean(world: GroupWorld, path: Path) -> None:
    """Remove a checkpoint; not timed. Ranks continue only when the disk has finished."""
    world.barrier()
    if world.is_main:
        remove(path)
    world.barrier()


def saves(world: GroupWorld, gigabytes: float, rounds: int, where: Path) -> dict[str, Any]:
    """Measure all ways in turn for several rounds; returns the slowest rank's seconds of each."""
    tensors = build_shards(gigabytes, world.mesh())
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in turn(list(WAYS), number):
            path = where / f"round_{number}"
            save = WAYS[way]
            taken = max(seconds(world, lambda save=save, path=path: save(path, tensors, world)))  # type: ignore[misc]
            if number:
                times[way].append(taken)
            elif save is save_ours:
                check_saved(path, tensors, world)
            clean(world, path)
    return {"times": times, "bytes": sum(tensor.nbytes for tensor in locals_of(tensors).values())}


def rank(
    number: int, port: int, axes: Axes, answer: Any, action: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """Run one rank: join the group and run the action; rank 0 returns the result."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = join_group(torch.device("cpu"), axes=axes, backend="gloo", local_rank=number, timeout=timedelta(minutes=5))
    result = action(world, *arguments)
    if world.is_main:
        answer.put(result)
        answer.close()
        answer.join_thread()
    world.close()
    os._exit(0)  # torch's groups may abort the interpreter's own end


def in_ranks(action: Callable[..., Any], *arguments: Any, axes: Axes = AXES) -> Any:
    """Run an action in new processes on this mesh, and return rank 0's result."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answer = mp.get_context("spawn").Queue()
    context = mp.start_processes(rank, (port, axes, answer, action, arguments), RANKS, join=False, start_method="spawn")  # type: ignore[attr-defined]  # public
    result = answer.get()
    while not context.join():
        pass
    return result


def measure(gigabytes: float, rounds: int, where: Path) -> None:
    """Print the table. Ratios are medians of the ratio in each round, so that slow phases of the disk cancel out."""
    found = in_ranks(saves, gigabytes, rounds, where)
    times, raw = found["times"], found["times"]["raw bytes of each"]
    print(
        f"{RANKS} ranks, {found['bytes'] / 1e9:.2f} GB each, in {where}; {rounds} rounds in alternation; slowest rank"
    )
    print(f"{'':20}{'save':>8}{'s':>8}")
    for way, mine in times.items():
        ratio = statistics.median(one / other for one, other in zip(mine, raw, strict=True))
        print(f"{way:20}{ratio:8.2f}{min(mine):8.2f}")


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=0.5, help="of each rank")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dir", default=None, help="where to write; default: the temporary directory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as where:
        measure(options.gigabytes, options.rounds, Path(where))


if __name__ == "__main__":
    main()
