"""How long the ranks of a pipeline idle in a step, beside what the schedule's formula says.

python benchmarks/pipeline_idle.py [--micro-batches 8] [--steps 5] [--schedules gpipe 1f1b zero_bubble]

The blocks do not compute but sleep, as long in a forward as for the gradient of their input and for that of their
weight. So what is measured are the schedule and the runtime, not the machine's other load: idle = 1 - slept / wall.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runner.optimizer.sgd import SGD
from runner.protocols import Loss, MicroBatch, StepBatches
from runner.strategy.parallel import Parallel
from runner.strategy.parallel.schedule import PipelineSettings, Schedule
from tests.strategy.ranks import builder, on_ranks

RANKS = 2
BLOCKS = 4
STAGES = {Schedule.INTERLEAVED: 2, Schedule.ZERO_BUBBLE_V: 2}
SLEEP_S = 0.02
"""For one block: its forward, the gradient of its input, or that of its weight."""


class Slow(torch.autograd.Function):
    """Sleeps in its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        time.sleep(SLEEP_S)
        return gradient


class Block(nn.Module):
    """Sleeps instead of computing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(SLEEP_S)
        slow: Any = Slow.apply
        found: Tensor = slow(x) + slow(self.weight)
        return found


def build() -> nn.Module:
    """Nothing but blocks."""
    return nn.Sequential(*(Block() for _ in range(BLOCKS)))


def loss(model: nn.Module, batch: Tensor) -> Loss:
    """The sum of what comes out."""
    return Loss(model(batch).sum(), len(batch))


def measure(world: Any, part: Parallel, num_micro_batches: int, steps: int) -> float:
    """Seconds of some steps."""
    given = builder(build=build, optimizer=partial(SGD(lr=0.1).build, items=1), loss=loss)
    trainable = part.prepare(given, world)
    batches = StepBatches([MicroBatch(torch.ones(2, 4), 2)] * num_micro_batches, 2 * num_micro_batches)
    trainable.forward_backward(batches)
    trainable.update(measure=False)
    world.barrier()
    start = time.perf_counter()
    for _ in range(steps):
        trainable.forward_backward(batches)
        trainable.update(measure=False)
    return time.perf_counter() - start


def formula(schedule: Schedule, num_micro_batches: int) -> float:
    """The idle share of a pipeline whose stages take equally long; for zero bubbles, of ZB1P and ZBV as published."""
    bubble = (RANKS - 1) / STAGES.get(schedule, 1)
    if schedule is Schedule.ZERO_BUBBLE:
        bubble = (RANKS - 1) / 3
    if schedule is Schedule.ZERO_BUBBLE_V:
        bubble = 0.0
    return bubble / (num_micro_batches + bubble)


def main() -> None:
    """Print a row for each schedule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--micro-batches", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--schedules", nargs="+", default=[one.value for one in Schedule])
    given = parser.parse_args()
    print("| schedule | idle by formula | idle, measured | step, s |\n|---|---|---|---|")
    for schedule in map(Schedule, given.schedules):
        settings = PipelineSettings(schedule=schedule, stages_per_rank=STAGES.get(schedule, 1))
        part = Parallel(pipeline=RANKS, shard=1, pipelining=settings)
        with tempfile.TemporaryDirectory() as scratch:
            args = (part, given.micro_batches, given.steps)
            wall = max(on_ranks(RANKS, measure, *args, scratch=Path(scratch), timeout_s=300, axes=part.axes(RANKS)))
        slept = 3 * SLEEP_S * BLOCKS / RANKS * given.micro_batches * given.steps
        idle = 1 - slept / wall
        expected = formula(schedule, given.micro_batches)
        print(f"| {schedule.value} | {expected:.1%} | {idle:.1%} | {wall / given.steps:.3f} |", flush=True)


if __name__ == "__main__":
    main()
