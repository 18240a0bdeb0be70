"""Time from process start to the first optimizer step: the runner, a plain script, and torchrun with plain DDP.

Each program trains the MLP of benchmarks/mlp.py and creates a file when its second step begins; then the CPU time of
its whole process tree is read, and the tree is killed. Programs alternate.

    python benchmarks/startup.py
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

import psutil

HERE = Path(__file__).parent
SCRIPT = str(HERE / "plain_script.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
RUNNER = [sys.executable, "-m", "runner", "train", str(HERE / "mlp.yaml"), "run.steps=20"]
DDP = ["strategy=ddp", "hardware.processes=2"]


def contenders(marker: Path) -> dict[str, list[str]]:
    """The commands to compare, by name."""
    ours = [*RUNNER, f"loss.marker={marker}"]
    return {
        "plain script": [sys.executable, SCRIPT, str(marker)],
        "runner": ours,
        "torchrun, 2 processes": [*TORCHRUN, SCRIPT, str(marker)],
        "runner, 2 processes": [*ours, *DDP],
    }


def measure(name: str) -> tuple[float, float]:
    """Wall time and CPU time to the first optimizer step, in seconds."""
    with tempfile.TemporaryDirectory() as directory:
        marker = Path(directory) / "second_step"
        command = contenders(marker)[name]
        began = time.monotonic()
        quiet = subprocess.DEVNULL
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        process = subprocess.Popen(
            command, cwd=directory, stdout=quiet, stderr=quiet, env=environment, start_new_session=True
        )
        tree = psutil.Process(process.pid)
        while not marker.exists():
            if process.poll() is not None and not marker.exists():
                raise SystemExit(f"{name} ended with {process.returncode} before its second step: {' '.join(command)}")
            time.sleep(0.002)
        wall = time.monotonic() - began
        members = [tree, *tree.children(recursive=True)]
        cpu = sum(sum(member.cpu_times()[:4]) for member in members)
        for member in members:
            member.send_signal(signal.SIGKILL)
        process.wait()
        return wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    names = list(contenders(Path()))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(repeats + 1):  # the first turn warms the page cache
        for name in names:
            figures = measure(name)
            taken[name] += [figures] if turn else []
    print(f"{'medians of ' + str(repeats):24} {'wall s':>7} {'CPU s':>7}   ratio of wall, CPU")
    for name in names:
        wall, cpu = (statistics.median(column) for column in zip(*taken[name], strict=True))
        baseline = taken["torchrun, 2 processes" if "2" in name else "plain script"]
        pairs = list(zip(taken[name], baseline, strict=True))
        ratios = [statistics.median(ours[column] / theirs[column] for ours, theirs in pairs) for column in (0, 1)]
        print(f"{name:24} {wall:7.2f} {cpu:7.2f}   {ratios[0]:.2f}, {ratios[1]:.2f}")


if __name__ == "__main__":
    main()
