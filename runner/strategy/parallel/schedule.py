"""Schedules of a pipeline: the order in which stages go forward and backward, by torch.distributed.pipelining."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, final

from runner.errors import Fault

if TYPE_CHECKING:
    from torch.nn import Module

    from runner.config.run_spec import RunSpec
    from runner.strategy.parallel.stage import Stage


class Schedule(Enum):
    """The order of forwards and backwards."""

    GPIPE = "gpipe"
    """All forwards, then all backwards: Huang et al. 2019. Holds the activations of every micro-batch."""
    ONE_F_ONE_B = "1f1b"
    """A backward as soon as there is one: Narayanan et al. 2019. Holds those of as many micro-batches as stages."""
    INTERLEAVED = "interleaved_1f1b"
    """The same with several stages on each rank, which divides the idle time by their number: Narayanan et al. 2021."""
    ZERO_BUBBLE = "zero_bubble"
    """Gradients of weights are computed in what would be idle time: ZB1P of Qi et al. 2023."""
    ZERO_BUBBLE_V = "zero_bubble_v"
    """The same with two stages on each rank, the first and the last on the first rank: ZBV of Qi et al. 2023."""


MANY = (Schedule.INTERLEAVED,)
"""Schedules that need several stages on each rank."""
IN_ROUNDS = (Schedule.INTERLEAVED, Schedule.ZERO_BUBBLE)
"""Schedules that go in rounds of equally many micro-batches, about as many as ranks."""


@final
@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """How a model is cut into stages, and in which order they work."""

    schedule: Schedule = Schedule.ONE_F_ONE_B
    """The order in which stages go forward and backward through the micro-batches of a step."""
    stages_per_rank: int = 1
    """Stages on each pipeline rank."""
    split: list[str] = field(default_factory=list)
    """Modules at which the stages after the first begin; empty = balanced by parameters."""
    build_own_stages: bool = False
    """Free the weights of other stages while the model is built; the model hook runs twice."""

    def __post_init__(self) -> None:
        if self.stages_per_rank < 1:
            raise ValueError(f"stages_per_rank={self.stages_per_rank} must be at least 1.")
        if self.schedule in MANY and self.stages_per_rank == 1:
            raise ValueError(f"schedule={self.schedule.value} interleaves stages of a rank: set stages_per_rank=2.")
        if self.schedule is Schedule.ONE_F_ONE_B and self.stages_per_rank > 1:
            rule = "schedule=1f1b has one stage on each rank. Use interleaved_1f1b"
            raise ValueError(f"{rule}, or stages_per_rank=1.")
        if self.schedule is Schedule.ZERO_BUBBLE_V and self.stages_per_rank != 2:
            raise ValueError("schedule=zero_bubble_v has two stages on each rank: set stages_per_rank=2.")

    def faults(self, spec: "RunSpec", ranks: int) -> Iterator[Fault]:
        """Report what does not go together with a pipeline of so many ranks."""
        from runner.config.of_blocks import Compiled

        if ranks == 1:
            if self.build_own_stages:
                rule = "builds the stages of a pipeline, but strategy.pipeline=1. Set strategy.pipeline, or false."
                yield Fault(key="strategy.build_own_stages", message=rule)
            return
        if not self.takes(spec.batch.accumulate, ranks):
            yield Fault(key="batch.micro_items", message=self._too_few(spec, ranks))
        if spec.batch.auto:
            rule = "auto takes steps without the other ranks, for whom the stages of a pipeline would wait."
            yield Fault(key="batch.micro_items", message=f"{rule} Give a number.")
        if spec.compile.what is Compiled.MODEL:
            rule = "model compiles a forward as a whole, but a pipeline cuts it. Use blocks."
            yield Fault(key="compile.what", message=rule)
        zero_bubble = self.schedule in (Schedule.ZERO_BUBBLE, Schedule.ZERO_BUBBLE_V)
        if zero_bubble and spec.compile.what is not Compiled.NONE:
            rule = f"{self.schedule.value} splits each backward in two, which compiled code does not allow."
            yield Fault(key="strategy.schedule", message=f"{rule} Use 1f1b, or compile.what=none.")

    def model_checks(self, ranks: int) -> "Iterable[Callable[[Module], Iterable[Fault]]]":
        """Check that the model can be cut into the stages."""
        from runner.strategy.parallel.split import split_faults

        if ranks > 1:
            yield partial(split_faults, num_stages=ranks * self.stages_per_rank, split=self.split)

    def takes(self, num_micro_batches: int, ranks: int) -> bool:
        """Whether the schedule can do with so many micro-batches."""
        if self.schedule is Schedule.ONE_F_ONE_B:
            return num_micro_batches >= ranks
        if self.schedule in IN_ROUNDS:
            return num_micro_batches % max(1, num_micro_batches // ranks) == 0
        return True

    def stages_of(self, rank: int, ranks: int) -> list[int]:
        """The stages of a pipeline rank, in ascending order."""
        if self.schedule is Schedule.ZERO_BUBBLE_V:
            return [rank, 2 * ranks - 1 - rank]
        return list(range(rank, ranks * self.stages_per_rank, ranks))

    def rank_of(self, stage: int, ranks: int) -> int:
        """The pipeline rank of a stage."""
        return next(rank for rank in range(ranks) if stage in self.stages_of(rank, ranks))

    def build(self, stages: "list[Stage]", num_micro_batches: int, ranks: int) -> Any:
        """torch's schedule over the stages of this rank; one for any number where this one cannot do with so few.

        Such a step is the short one at the end of an epoch, or repeated micro-batch by micro-batch to find an error.
        """
        from torch.distributed import pipelining as torch_schedules
        from torch.distributed.pipelining.schedules import ScheduleZBVZeroBubble

        single, many = torch_schedules.ScheduleGPipe, torch_schedules.ScheduleLoopedBFS
        chosen: Any = many if len(stages) > 1 else single
        if self.takes(num_micro_batches, ranks):
            chosen = {
                Schedule.GPIPE: chosen,
                Schedule.ONE_F_ONE_B: torch_schedules.Schedule1F1B,
                Schedule.INTERLEAVED: torch_schedules.ScheduleInterleaved1F1B,
                Schedule.ZERO_BUBBLE: torch_schedules.ScheduleInterleavedZeroBubble,
                Schedule.ZERO_BUBBLE_V: ScheduleZBVZeroBubble,
            }[self.schedule]
        given: Any = stages[0] if chosen in (single, torch_schedules.Schedule1F1B) else stages
        return chosen(given, num_micro_batches, loss_fn=lambda output, target: output, scale_grads=False)

    def _too_few(self, spec: "RunSpec", ranks: int) -> str:
        """That a step has the wrong number of micro-batches, and which micro-batches would do."""
        given = spec.batch.accumulate
        if self.schedule is Schedule.ONE_F_ONE_B:
            rule = f"schedule=1f1b needs one for each of {ranks} pipeline ranks"
        else:
            rule = f"schedule={self.schedule.value} goes in {given // ranks} rounds of equally many"
        rank_items = given * spec.batch.micro_items
        fitting = [
            rank_items // count
            for count in range(1, rank_items + 1)
            if rank_items % count == 0 and self.takes(count, ranks)
        ]
        sizes = " or ".join(str(size) for size in fitting[:3]) or "a larger batch.items"
        way_out = f"Use batch.micro_items={sizes}" if fitting else f"Use {sizes}"
        return f"{given} micro-batches make a step of a rank, but {rule}. {way_out}, or strategy.schedule=gpipe."
