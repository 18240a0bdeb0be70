"""CPU time of a step of two processes under DDP and FSDP, compared with hand-written loops around the same classes.

The GPT of benchmarks/gpt.py with AdamW, from reading to the update. The loops take turns in the same two processes, on
the same items in the same order. The losses of the last step are compared.

    OMP_NUM_THREADS=1 python benchmarks/two_processes.py              # ddp, fsdp, and ddp with compile.what=step
    OMP_NUM_THREADS=1 python benchmarks/two_processes.py ddp
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpt
import torch
from checkpoint_ranks import RANKS, in_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from runner import log
from runner.composition.compose import compose
from runner.composition.find_recipe import find
from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.data.order import Shuffled
from runner.data.source import endless
from runner.data.steps import RankSteps
from runner.engine.session import open_session
from runner.protocols import Axis
from runner.world.group import GroupWorld
from runner.world.stop import StopRequest

RECIPE = Path(__file__).with_name("gpt.yaml")
ITEMS = 16 * RANKS
WARM_UP = 3
Steps = Iterator[Tensor]
"""Takes a step whenever it is asked for the next loss of this rank."""


def spec_of(way: str) -> RunSpec:
    """The spec of the engine's run."""
    overrides = [
        f"hardware.processes={RANKS}", "hardware=cpu", "hardware.threads=1", f"batch.items={ITEMS}",
        "run.steps=1000000",
    ]  # fmt: skip
    return compose(find(str(RECIPE)), [*overrides, *WAYS[way][0]]).read()


def engine(way: str, world: GroupWorld, directory: Path) -> Steps:
    """The runner's steps."""
    run_dir = RunDir(directory)
    log.setup(run_dir.rank_log(world.rank), rank=world.rank, console=False)
    with open_session(spec_of(way), run_dir, world, StopRequest()) as session:
        for batches in endless(session.training.source):
            loss, _ = session.take_step(batches, measure=False)
            yield loss.losses[0].value


def by_hand(wrap: Callable[[nn.Module, DeviceMesh], nn.Module], world: GroupWorld) -> Steps:
    """The loop that people write."""
    torch.manual_seed(0)
    model = wrap(gpt.build_model(), world.mesh())
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    data = gpt.Windows()
    for rank_step in rank_steps(world):
        (micro_batch,) = rank_step.micro_batches
        loss = gpt.compute_loss(model, data.__getitems__(micro_batch.indices))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach()


def rank_steps(world: GroupWorld) -> Iterator[Any]:
    """The indices of this rank's items of each step, in the runner's order."""
    order = Shuffled(gpt.ITEMS, seed=0)
    steps = RankSteps(order=order, step_items=ITEMS, micro_items=ITEMS // RANKS, rank=world.rank, ranks=RANKS)
    return iter(steps.starting_at(0))


def ddp(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """DDP with the runner's defaults."""
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def fsdp(model: Any, mesh: DeviceMesh) -> nn.Module:
    """Each block a unit, and the rest one that is gathered from the forward to the backward."""
    for block in model.blocks:
        fully_shard(block, mesh=mesh[Axis.SHARD])
    root: nn.Module = fully_shard(model, mesh=mesh[Axis.SHARD], reshard_after_forward=False)
    return root


WAYS = {
    "ddp": (["strategy=ddp"], ddp),
    "fsdp": (["strategy=fsdp", "blocks.classes=[Block]"], fsdp),
    "ddp_graph": (["strategy=ddp", "compile.what=step"], ddp),
}
"""The runner's overrides, and the loop by hand, which compiles nothing."""


def measure(world: GroupWorld, way: str, turns: int, steps: int, directory: Path) -> list[Any]:
    """Of each rank: seconds of CPU time per step in each turn, of the engine and by hand, and their last losses."""
    torch.set_num_threads(1)
    loops = [engine(way, world, directory), by_hand(WAYS[way][1], world)]
    last = [torch.zeros(()), torch.zeros(())]
    times: list[list[float]] = [[], []]
    for turn in range(turns + 1):
        for which in (0, 1) if turn % 2 else (1, 0):
            world.barrier()
            began = time.process_time()
            for _ in range(steps if turn else WARM_UP):
                last[which] = next(loops[which])
            if turn:
                times[which].append((time.process_time() - began) / steps)
    for loop in loops:
        loop.close()  # type: ignore[attr-defined]
    return world.gather_objects((times, [loss.item() for loss in last]))


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ways", nargs="*", default=list(WAYS), help=", ".join(WAYS))
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--steps", type=int, default=15)
    given = parser.parse_args()
    print(f"{'':10}{'runner':>9}{'by hand':>9}{'ratio':>8}   losses differ by   (ms of CPU time of a step, both ranks)")
    for way in given.ways:
        with tempfile.TemporaryDirectory() as directory:
            axes = spec_of(way).strategy.axes(RANKS)
            of_ranks = in_ranks(measure, way, given.turns, given.steps, Path(directory), axes=axes)
        ours, theirs = (
            [sum(turn) for turn in zip(*(times[which] for times, _ in of_ranks), strict=True)] for which in (0, 1)
        )
        ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
        off = max(abs(mine - other) for _, (mine, other) in of_ranks)
        median = [1e3 * statistics.median(times) for times in (ours, theirs)]
        print(f"{way:10}{median[0]:9.1f}{median[1]:9.1f}{ratio:8.3f}   {off:.1e}", flush=True)


if __name__ == "__main__":
    main()
