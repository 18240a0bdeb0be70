"""Time saved by exchanging gradients in the last micro-batch only, compared with a hand-written loop with no_sync.

Two processes under DDP, four micro-batches a step, wall time. Four loops take turns: the engine and a hand-written one,
each exchanging in every micro-batch or only in the last; each pair ends with bitwise equal weights.

    python benchmarks/synchronisation.py
"""

import contextlib
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import mlp
import torch
import torch.multiprocessing
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from runner import log
from runner.composition.compose import compose
from runner.composition.find_recipe import find
from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.data.order import Shuffled
from runner.data.steps import RankSteps
from runner.engine.session import open_session
from runner.protocols import World
from runner.protocols.state import MODEL
from runner.world.identity import find_identity
from runner.world.opening import open_world
from runner.world.stop import StopRequest

RANKS, MICRO_BATCHES, MICRO_ITEMS, HIDDEN = 2, 4, 8, 16384
ITEMS = RANKS * MICRO_BATCHES * MICRO_ITEMS
STEPS = 40  # of one turn
TURNS = 12
RECIPE = Path(__file__).with_name("mlp.yaml")

Loop = tuple[Callable[[], None], list[Tensor]]
"""A function that takes one step, and the weights that it trains."""


def spec_of(*, each: bool) -> RunSpec:
    """Of the engine's run."""
    overrides = {
        "strategy": "ddp",
        "strategy.sync_each_round": str(each).lower(),
        "hardware.processes": RANKS,
        "hardware.threads": 1,
        "batch.items": ITEMS,
        "batch.micro_items": MICRO_ITEMS,
        "model.hidden": HIDDEN,
    }
    return compose(find(str(RECIPE)), [f"{key}={value}" for key, value in overrides.items()]).read()


def engine(spec: RunSpec, world: World, directory: Path, stack: contextlib.ExitStack) -> Loop:
    """The engine's step; its session is open until the stack is closed."""
    session = stack.enter_context(open_session(spec, RunDir(directory), world, StopRequest()))
    steps = iter(session.training.source)

    def step() -> None:
        session.take_step(next(steps), measure=False)

    return step, list(session.trainable.models[MODEL].parameters())


def by_hand(*, each: bool, world: World) -> Loop:
    """The hand-written loop."""
    torch.manual_seed(0)
    model = DistributedDataParallel(mlp.build_model(HIDDEN), gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = mlp.Points()
    order = Shuffled(mlp.ITEMS, seed=0)
    rank_steps = RankSteps(order=order, step_items=ITEMS, micro_items=MICRO_ITEMS, rank=world.rank, ranks=world.size)
    plans = rank_steps.starting_at(0)

    def step() -> None:
        micro_batches = next(plans).micro_batches
        for number, micro_batch in enumerate(micro_batches, 1):
            waits = not each and number < MICRO_BATCHES
            with model.no_sync() if waits else contextlib.nullcontext():
                (mlp.compute_loss(model, data.__getitems__(micro_batch.indices)) / MICRO_BATCHES).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, list(model.parameters())


def turn(step: Callable[[], None], world: World) -> float:
    """Milliseconds per step."""
    world.barrier()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    world.barrier()
    return 1e3 * (time.perf_counter() - began) / STEPS


def rank(number: int, port: int, directory: str) -> None:
    """Run the benchmark on one rank."""
    numbers = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS}
    numbers["MASTER_PORT"] = port
    os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in numbers.items()}})
    run_dir = RunDir(Path(directory))
    log.setup(run_dir.rank_log(number), rank=number, console=False)
    specs = {each: spec_of(each=each) for each in (True, False)}
    axes = specs[True].strategy.axes(RANKS)
    world = open_world(specs[True].hardware, axes, find_identity(os.environ), timeout=timedelta(minutes=2))
    loops = {}
    stack = contextlib.ExitStack()
    for each, spec in specs.items():
        loops["engine", each] = engine(spec, world, Path(directory), stack)
        loops["by hand", each] = by_hand(each=each, world=world)
    times: dict[tuple[str, bool], list[float]] = {key: [] for key in loops}
    for number_of_turn in range(TURNS + 1):
        for key, (step, _) in loops.items():
            taken = turn(step, world)
            if number_of_turn:  # the first warms up
                times[key].append(taken)
    for each in specs:
        ours, theirs = loops["engine", each][1], loops["by hand", each][1]
        alike = all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
        assert alike, f"the engine's weights are not those of the loop by hand (each={each})"
    if world.is_main:
        report(times)
    loops.clear()
    stack.close()
    world.close()


def report(times: dict[tuple[str, bool], list[float]]) -> None:
    """Print medians, and the median of the ratio within each turn."""
    print(f"{'':10}{'each round':>14}{'last round':>14}{'saves':>8}   (ms of wall time a step; each / last)")
    for who in ("engine", "by hand"):
        each, last = times[who, True], times[who, False]
        saved = statistics.median(one / other for one, other in zip(each, last, strict=True))
        print(f"{who:10}{statistics.median(each):14.2f}{statistics.median(last):14.2f}{saved:8.2f}")


def main() -> None:
    """Start one process per rank."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as directory:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        torch.multiprocessing.spawn(rank, (port, directory), nprocs=RANKS)  # type: ignore[attr-defined]  # public


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
