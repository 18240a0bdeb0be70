"""Save and load 1 GB of state, compared with raw bytes, torch.save and torch's distributed checkpoint, in alternation.

    python benchmarks/checkpoint.py                          # about three minutes
    python benchmarks/checkpoint.py --gigabytes 0.1 --rounds 3 --dir /some/disk
    python benchmarks/checkpoint.py --blocked                # only how long a background save blocks the loop
    python benchmarks/checkpoint.py --frozen                 # only checkpoints of adapters on a frozen base

Prints medians over the rounds as ratios, and the fastest round in seconds: saving to raw bytes written and fsynced,
loading to raw bytes read into existing memory. The state is a model's parameters and Adam's state for each. Everything
is on the disk when the clock stops. Memory is the peak resident size of a separate process, minus that after building
the state. Files are read from the page cache. The first round, which includes imports, is not counted.

Then, with checkpoint.asynchronous=true: how long save() blocks the caller and the update after it waits, with a pause
of a second between them in place of a forward; compared with a copy of the tensors of the state.
The first save is compared with a copy into memory that is touched for the first time, each in a process of its own,
since memory that a process had before is allocated faster; later saves are compared with a copy into existing memory.

With --frozen, the state is a frozen base of that size and adapters that have a hundredth of it with Adam's moments. The
first save writes both, the second one hashes the base and links to the file that the first has written.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from runner.checkpoint.sharded import Sharded
from runner.protocols import Progress, World
from runner.storage.checkpoints import Checkpoints
from runner.storage.names import from_names
from runner.world.solo import SoloWorld

Tensors = dict[str, Tensor]
WIDTH = 1024
FORWARD_S = 1.0  # of a pause in place of a forward and backward
ALONE = SoloWorld(torch.device("cpu"))


def build_state(gigabytes: float) -> Tensors:
    """Blocks of a transformer of width 1024 in float32, each parameter with two moments and a step count."""
    shapes = {"attention": (3 * WIDTH, WIDTH), "out": (WIDTH, WIDTH), "up": (4 * WIDTH, WIDTH), "norm": (WIDTH,)}
    tensors: Tensors = {}
    size = 0
    block = 0
    while size < gigabytes * 1e9:
        for name, shape in shapes.items():
            parameter = torch.randn(shape)
            tensors[f"model.{block}.{name}"] = parameter
            tensors[f"optimizer.{block}.{name}.exp_avg"] = torch.randn(shape)
            tensors[f"optimizer.{block}.{name}.exp_avg_sq"] = torch.rand(shape)
            tensors[f"optimizer.{block}.{name}.step"] = torch.tensor(100.0)
            size += 3 * parameter.nbytes + 4
        block += 1
    return tensors


def views(tensors: Tensors) -> list[memoryview]:
    """The bytes of each tensor, not copied."""
    return [tensor.reshape(-1).view(torch.uint8).numpy().data for tensor in tensors.values()]


def save_raw(path: Path, tensors: Tensors) -> None:
    """Write the bytes of each tensor, then fsync: the minimum for any save."""
    path.mkdir()
    with (path / "raw").open("wb", buffering=0) as file:
        for view in views(tensors):
            file.write(view)
        os.fsync(file.fileno())


def save_ours(path: Path, tensors: Tensors, world: World = ALONE) -> None:
    """Save and commit a checkpoint with the runner."""
    checkpointer = Sharded().open(path, world)
    checkpointer.save(from_names(tensors), progress=Progress(step=1, position=1), metrics={})


def save_torch(path: Path, tensors: Tensors) -> None:
    """Save with torch.save, then fsync."""
    path.mkdir()
    torch.save(tensors, path / "state.pt")
    with (path / "state.pt").open("rb") as file:
        os.fsync(file.fileno())


def save_dcp(path: Path, tensors: Tensors) -> None:
    """Save with torch's distributed checkpoint and its file writer, which fsyncs."""
    import torch.distributed.checkpoint as dcp  # here: a process that measures a first save must not have it already

    dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(path), no_dist=True)  # type: ignore[attr-defined]  # public


def load_raw(path: Path, tensors: Tensors) -> None:
    """Read the bytes into existing memory."""
    with (path / "raw").open("rb", buffering=0) as file:
        for view in views(tensors):
            file.readinto(view)


def load_ours(path: Path, tensors: Tensors) -> None:
    """Find, verify and load the newest checkpoint."""
    checkpoints = Checkpoints(path / "checkpoints", ALONE)
    latest = checkpoints.latest()
    assert latest is not None
    checkpoints.open(latest).read(from_names(tensors))


def load_torch(path: Path, tensors: Tensors) -> None:
    """Load with torch.load, then copy into the tensors."""
    for name, tensor in torch.load(path / "state.pt", weights_only=True).items():
        tensors[name].copy_(tensor)


def load_dcp(path: Path, tensors: Tensors) -> None:
    """Load with torch's distributed checkpoint and its file reader."""
    import torch.distributed.checkpoint as dcp

    dcp.load(dict(tensors), storage_reader=dcp.FileSystemReader(path), no_dist=True)  # type: ignore[attr-defined]  # public


Action = Callable[[Path, Tensors], None]
WAYS: dict[str, tuple[Action, Action]] = {
    "raw bytes": (save_raw, load_raw),
    "runner, committed": (save_ours, load_ours),
    "torch.save": (save_torch, load_torch),
    "DCP's own files": (save_dcp, load_dcp),
}


def seconds(action: Action, path: Path, tensors: Tensors) -> float:
    """Time an action, in seconds."""
    begin = time.perf_counter()
    action(path, tensors)
    return time.perf_counter() - begin


def remove(path: Path) -> None:
    """Delete and sync: otherwise the next flush pays for it (ext4 discards at its next commit)."""
    shutil.rmtree(path)
    os.sync()


def status_mb(field: str) -> float:
    """VmHWM or VmRSS of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def extra_memory(way: str, kind: str, gigabytes: float, path: Path) -> float:
    """Peak resident MB that one save or load takes above the state itself, in a process of its own."""
    command = [sys.executable, __file__, "--gigabytes", str(gigabytes), "--child", way, kind, str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child(way: str, kind: str, path: Path, gigabytes: float) -> None:
    """Print how much the peak grew. A tiny save and load come first, so that imports are not counted."""
    save, load = WAYS[way]
    small = {"model.a": torch.zeros(8)}
    with tempfile.TemporaryDirectory() as scratch:
        save(Path(scratch) / "warm", small)
        load(Path(scratch) / "warm", small)
    tensors = build_state(gigabytes)
    before = status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here (Linux)
    (save if kind == "save" else load)(path, tensors)
    print(status_mb("VmHWM") - before)


def turn(ways: list[str], number: int) -> list[str]:
    """Rotate the order of the ways in every round, since on a shared disk the order of writes matters."""
    return ways[number % len(ways) :] + ways[: number % len(ways)]


def measure(gigabytes: float, rounds: int, where: Path) -> None:
    """Measure all ways in turn for several rounds, after a warm-up round."""
    tensors = build_state(gigabytes)
    target = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    saved: dict[str, list[float]] = {way: [] for way in WAYS}
    loaded: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in turn(list(WAYS), number):
            save, load = WAYS[way]
            path = where / f"round_{number}"
            times = seconds(save, path, tensors), seconds(load, path, target)
            assert all(torch.equal(target[name], tensor) for name, tensor in tensors.items()), way
            for tensor in target.values():
                tensor.zero_()
            remove(path)
            if number:
                saved[way].append(times[0])
                loaded[way].append(times[1])
    report(size, saved, loaded, gigabytes, where)


def report(
    size: int, saved: dict[str, list[float]], loaded: dict[str, list[float]], gigabytes: float, where: Path
) -> None:
    """Print the table. Ratios are medians of the ratio in each round, so that slow phases of the disk cancel out."""
    rounds = len(saved["raw bytes"])
    print(f"{size / 1e9:.2f} GB of state in {where}; {rounds} rounds in alternation; 1 = raw bytes; s of the fastest")
    print(f"{'':20}{'save':>8}{'s':>8}{'load':>8}{'s':>8}{'save MB':>10}{'load MB':>10}")
    for way in WAYS:
        ratios = []
        for times in (saved, loaded):
            each = [mine / raw for mine, raw in zip(times[way], times["raw bytes"], strict=True)]
            ratios += [statistics.median(each), min(times[way])]
        path = where / "memory"
        memory = [extra_memory(way, kind, gigabytes, path) for kind in ("save", "load")]
        remove(path)
        print(
            f"{way:20}{ratios[0]:8.2f}{ratios[1]:8.2f}{ratios[2]:8.2f}{ratios[3]:8.2f}{memory[0]:10.0f}{memory[1]:10.0f}"
        )


def measure_frozen(gigabytes: float, rounds: int, where: Path) -> None:
    """Save adapters on a frozen base twice, in alternation with raw bytes of both and of the adapters alone."""
    base = {f"model.base.{name}": one for name, one in build_state(gigabytes).items() if one.numel() > 1}
    adapters = build_state(gigabytes / 100)
    times: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for way in turn(["raw", "raw adapters", "saves"], number):
            path = where / f"frozen_{number}"
            if way == "saves":
                found = dict(zip(("first save", "second save"), two_saves(path, base, adapters), strict=True))
            else:
                found = {way: seconds(save_raw, path, adapters if way == "raw adapters" else {**base, **adapters})}
            remove(path)
            for name, took in found.items() if number else ():
                times.setdefault(name, []).append(took)
    print(f"adapters of {gigabytes / 100:.3f} GB with moments on a frozen base of {gigabytes} GB; medians of {rounds}")
    for way, mine in sorted(times.items()):
        ratio = statistics.median(one / raw for one, raw in zip(mine, times["raw"], strict=True))
        print(f"{way:26}{statistics.median(mine):8.3f} s   ratio {ratio:6.2f}")


def two_saves(path: Path, base: Tensors, adapters: Tensors) -> tuple[float, float]:
    """Seconds of the first and of the second checkpoint of a run."""
    state = from_names({**base, **adapters})
    state.frozen = {"model": {name.removeprefix("model.") for name in base}}
    checkpointer = Sharded().open(path, ALONE)

    def save(*_: object) -> None:
        checkpointer.save(state, progress=Progress(step=len(took) + 1, position=0), metrics={})

    took: list[float] = []
    took += [seconds(save, path, {})]
    took += [seconds(save, path, {})]
    return took[0], took[1]


def blocked(first: str, gigabytes: float, path: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of saves and of plain copies in alternation, in this process; the one named first begins.

    Returns:
        Seconds of saves and copies; the first of each touches its memory for the first time.
    """
    tensors = build_state(gigabytes)
    checkpointer = Sharded(asynchronous=True).open(path, ALONE)
    copies: Tensors = {}
    times: dict[str, list[float]] = {"save": [], "copy": []}
    for step in range(1, rounds + 2):
        for kind in ("save", "copy") if first == "save" else ("copy", "save"):
            checkpointer.wait()  # what was under way neither counts nor disturbs
            begin = time.perf_counter()
            if kind == "save":
                progress = Progress(step=step, position=step)
                checkpointer.save(from_names(tensors), progress=progress, metrics={})
                time.sleep(FORWARD_S)
                checkpointer.finish_copy(after_forward=True)
                begin += FORWARD_S
            elif copies:
                for name, tensor in tensors.items():
                    copies[name].copy_(tensor)
            else:
                copies = {name: tensor.clone() for name, tensor in tensors.items()}
            times[kind].append(time.perf_counter() - begin)
    checkpointer.wait()
    return times["save"], times["copy"]


def measure_blocked(gigabytes: float, rounds: int, where: Path) -> None:
    """Run processes in turn, in which either the save or the copy is the first to touch fresh memory."""
    firsts: dict[str, list[float]] = {"save": [], "copy": []}
    later: dict[str, list[float]] = {"save": [], "copy": []}
    for number in range(rounds):
        for first in ("save", "copy"):
            path = where / f"blocked_{number}_{first}"
            command = [sys.executable, __file__, "--gigabytes", str(gigabytes), "--child", first, "blocked", str(path)]
            save, copy = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            firsts[first].append({"save": save, "copy": copy}[first][0])
            later["save"] += save[1:]
            later["copy"] += copy[1:]
            remove(path)
    print(f"asynchronous: how long the caller is blocked, compared with a copy of {gigabytes} GB; medians")
    for name, times in (("first save, fresh memory", firsts), ("later saves", later)):
        save_s, copy_s = statistics.median(times["save"]), statistics.median(times["copy"])
        print(f"{name:26}{save_s:8.3f} s   copy {copy_s:8.3f} s   ratio {save_s / copy_s:6.2f}")


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dir", default=None, help="where to write; default: the temporary directory")
    parser.add_argument("--blocked", action="store_true", help="measure only the background save")
    parser.add_argument("--frozen", action="store_true", help="measure only checkpoints of adapters on a frozen base")
    parser.add_argument("--child", nargs=3, metavar=("WAY", "KIND", "PATH"), help="internal: a process of its own")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    if options.child:
        way, kind, path = options.child
        if kind == "blocked":
            print(json.dumps(blocked(way, options.gigabytes, Path(path), 4)))
            return
        child(way, kind, Path(path), options.gigabytes)
        return
    with tempfile.TemporaryDirectory(dir=options.dir) as where:
        if options.frozen:
            measure_frozen(options.gigabytes, options.rounds, Path(where))
            return
        if not options.blocked:
            measure(options.gigabytes, options.rounds, Path(where))
        measure_blocked(options.gigabytes, max(1, options.rounds // 2), Path(where))


if __name__ == "__main__":
    main()
