"""Time from the start of `runner resume` to its first step, for a run with a gigabyte of state and for a tiny one.

The state is a model of 84 million weights and AdamW's moments of them. 1 = what the tiny run takes, plus what it takes
to read the bytes of the checkpoint into new memory. The files are in the page cache. A step begins when the loss hook
is called. All take turns, and so does the model hook alone, which gives the model its initial weights.

    OMP_NUM_THREADS=1 python benchmarks/resume.py
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlp
import torch

from runner.config.run_dir import RunDir
from runner.storage.checkpoints import Checkpoints
from runner.world.solo import SoloWorld

HERE = Path(__file__).parent
RUNNER = [sys.executable, "-m", "runner"]
TOWER = ["model._target_=mlp.build_tower", "~model.hidden"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(HERE.parent)}


def train(directory: Path, overrides: list[str]) -> None:
    """Take one step and save."""
    settings = [
        "hardware=cpu", "optimizer=adamw", "optimizer.lr=1e-6", "checkpoint=full", "run.steps=1000",
        "run.stop_at_step=1", f"run.dir={directory}", "+loss.call=1", f"loss.marker={marker(directory)}",
    ]  # fmt: skip
    command = [*RUNNER, "train", str(HERE / "mlp.yaml"), *settings, *overrides]
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True, timeout=300)


def marker(directory: Path) -> Path:
    """The file that the loss hook of this run makes."""
    return directory.with_name(f"{directory.name}.marker")


def resume(directory: Path) -> float:
    """Seconds from the start of the process to its first step."""
    first = marker(directory)
    first.unlink(missing_ok=True)
    quiet = subprocess.DEVNULL
    began = time.monotonic()
    command = [*RUNNER, "resume", str(directory)]
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=ENVIRONMENT, start_new_session=True)
    while not first.exists():
        if process.poll() is not None and not first.exists():
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode} before its first step")
        time.sleep(0.002)
    taken = time.monotonic() - began
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return taken


def read(checkpoint: Path) -> float:
    """Seconds to read all files into new memory."""
    began = time.monotonic()
    for path in checkpoint.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                file.readinto(torch.empty(path.stat().st_size, dtype=torch.uint8).numpy().data)
    return time.monotonic() - began


def build() -> float:
    """Seconds to build the model."""
    began = time.monotonic()
    mlp.build_tower()
    return time.monotonic() - began


def main() -> None:
    """Train both runs, resume them in turn, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dir", default=None, help="where the runs are; default: the temporary directory")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.dir) as where:
        tiny, large = Path(where) / "tiny", Path(where) / "large"
        train(tiny, [])
        train(large, TOWER)
        checkpoint = Checkpoints(RunDir(large).checkpoints, SoloWorld(torch.device("cpu"))).latest()
        assert checkpoint is not None
        rows = []
        for turn in range(options.repeats + 1):
            row = (resume(tiny), read(checkpoint), resume(large), build())
            rows += [row] if turn else []  # the first one warms the page cache
    for name, column in zip(("tiny run", "reading", "large run", "building"), zip(*rows, strict=True), strict=True):
        print(f"{name:10} {statistics.median(column):6.2f} s")
    ratio = statistics.median(large_s / (tiny_s + read_s) for tiny_s, read_s, large_s, _ in rows)
    print(f"large run / (tiny run + reading): {ratio:.2f}   (medians of {options.repeats})")


if __name__ == "__main__":
    main()
