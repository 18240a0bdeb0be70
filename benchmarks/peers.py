"""One training under this runner, other trainers and a loop by hand: the CPU time of a step.

Each row is the same small MLP on the same items in the same order, with SGD, and the loss recorded every ten steps as
each library does that itself. Every contestant runs in a process of its own (in two under torchrun), all in turn, then
all again. The loss of the final model over all items must agree; whose does not has done other work, and is no
contestant.

    pip install 'hydra-runner[peers]'
    python benchmarks/peers.py                              # one process: all libraries, all variants
    python benchmarks/peers.py --processes 2 plain clip     # two processes, some variants
"""

import argparse
import importlib.util
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import mlp
import torch
from contestants import CONTESTANTS, RANK, STEPS, Setting

VARIANTS = ("plain", "accumulate", "clip", "bf16", "tensorboard")
TOLERANCE = {"bf16": 2e-2}
"""Of the final loss; 1e-5 elsewhere."""


def run(name: str, variant: str) -> None:
    """One contestant in this process, or in one of two; prints what it took and where the model arrived."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:  # writers may still be writing
        taken, model = CONTESTANTS[name][1](Setting(variant, Path(directory)))
    points = mlp.Points()
    with torch.no_grad():
        loss = mlp.compute_loss(model.eval(), (points.x, points.y)).item()
    if RANK == 0:
        print("\n" + json.dumps({"taken": taken, "loss": loss}))
    sys.stdout.flush()
    os._exit(0)  # groups of processes are left to the system


def measure(name: str, variant: str, processes: int) -> tuple[float, float]:
    """CPU seconds of the loop (of rank 0, if there are two), and the final loss."""
    words = [sys.executable, __file__, "--contestant", name, variant]
    if processes > 1:
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *meeting]
        words = [*torchrun, *words[1:]]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=600, env=env)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"taken"')]
    if not lines:
        raise SystemExit(f"{name}, {variant} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found = json.loads(lines[-1])
    return found["taken"], found["loss"]


def compare(variant: str, processes: int, repeats: int, names: list[str]) -> None:
    """All contestants in turn, repeatedly; prints medians of their ratios to the loop by hand."""
    taken: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, float] = {}
    for number in range(repeats):
        for name in names if number % 2 == 0 else reversed(names):
            seconds, losses[name] = measure(name, variant, processes)
            taken[name].append(seconds)
    for name in names:
        off = abs(losses[name] - losses["by hand"])
        if off > TOLERANCE.get(variant, 1e-5):
            print(f"{variant:12} {name:11} did other work: its loss differs by {off:.1e}", flush=True)
            continue
        ratio = statistics.median(mine / hand for mine, hand in zip(taken[name], taken["by hand"], strict=True))
        micro = 1e6 * statistics.median(taken[name]) / STEPS
        print(f"{variant:12} {name:11} {micro:8.1f} {ratio:7.2f}   {off:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("variants", nargs="*", default=list(VARIANTS), help=", ".join(VARIANTS))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--contestant", nargs=2, metavar=("NAME", "VARIANT"), help="one contestant, in this process")
    arguments = parser.parse_args()
    if arguments.contestant:
        run(*arguments.contestant)
    names = [name for name, (module, _) in CONTESTANTS.items() if importlib.util.find_spec(module)]
    if missing := CONTESTANTS.keys() - names:
        print(f"not installed: {', '.join(sorted(missing))}. pip install 'hydra-runner[peers]'")
    print(f"{'variant':12} {'':11} {'µs':>8} {'ratio':>7}   loss differs by   (CPU time of a step, medians)")
    for variant in arguments.variants:
        compare(variant, arguments.processes, arguments.repeats, names)


if __name__ == "__main__":
    main()
