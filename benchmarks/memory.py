"""Peak resident memory of a tiny run: the runner compared with a plain script, each in a process of its own.

python benchmarks/memory.py
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CONTENDERS = {
    "plain script": [sys.executable, str(HERE / "plain_script.py"), os.devnull],
    "runner": [sys.executable, "-m", "runner", "train", str(HERE / "mlp.yaml"), "run.steps=128"],
}


def peak_mib(command: list[str]) -> float:
    """Peak memory of the largest process, as reported by the kernel."""
    with tempfile.TemporaryDirectory() as directory:
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, cwd=directory, stdout=quiet, stderr=quiet, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)} failed: {status}")
        return usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    peaks: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(repeats):
        for name, command in CONTENDERS.items():
            peaks[name].append(peak_mib(command))
    baseline = statistics.median(peaks["plain script"])
    for name, values in peaks.items():
        print(f"{name:14} {statistics.median(values):7.1f} MiB   ratio {statistics.median(values) / baseline:.3f}")


if __name__ == "__main__":
    main()
