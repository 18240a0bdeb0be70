"""The declaration of a run: every section of a recipe, typed. `config/read.py` builds one from a configuration."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Literal

from runner.config.models import OWN, Hook, NamedModel, TrainingPhase
from runner.config.of_blocks import ActivationCheckpointing, Blocks, Compile
from runner.config.secret import Secret
from runner.protocols import (
    Callback,
    Checkpoint,
    Clip,
    Hardware,
    Launcher,
    Metric,
    Optimizer,
    Ordering,
    Precision,
    Schedule,
    Strategy,
    Tracker,
)

PREFIX = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)
"""What may stand before the slash and the name of a metric."""


class Cut(Enum):
    """Which items of a step go into one micro-batch. It changes how much is padded, and no gradient."""

    EVEN = "even"
    """Those that follow each other in the order."""
    BY_LENGTH = "by_length"
    """Those of similar length; ranks get alike ones at a time."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Items of one optimizer step, and how they are divided into micro-batches."""

    items: int
    """Global batch of one optimizer step."""
    micro_items: int
    """Items that one rank forwards at once."""
    accumulate: int
    """Micro-batches of one rank in a full step: items / (micro_items × data ranks)."""
    auto: bool = False
    """Whether micro_items is an upper limit: the run finds what fits into memory before its first step."""
    cut: Cut = Cut.EVEN
    """Which items of a step go into one micro-batch."""
    micro_tokens: int | None = None
    """Most items × longest length in one micro-batch; null = no limit but micro_items."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """How long a run is, its seed, and its directory."""

    steps: int
    """Optimizer steps of the whole run; schedules span them."""
    seed: int
    """Seed of initial weights, data order and everything else that is random."""
    deterministic: bool
    """Use deterministic kernels only: two runs of one spec are bitwise equal on one kind of hardware."""
    debug: bool = False
    """Compare every collective with those of the other ranks before it runs: slow, but those that disagree raise."""
    stop_at_step: int | None
    """End this attempt after that step, with a checkpoint; the schedule keeps its length. null = off."""
    dir: str | None
    """The run's directory, which must not exist. null = outputs/<name>/<date>/<time>-<id>."""


class Reader(Enum):
    """Which ranks read items."""

    EACH_RANK = "each_rank"
    """Each reads its own."""
    RANK_0 = "rank_0"
    """The first one reads those of all and hands them out: for a store that is slow, or has one reader."""


@dataclass(frozen=True, kw_only=True)
class Loader:
    """How items are read."""

    workers: int
    """Processes that read items ahead of each rank; 0 = read in the rank itself."""
    prefetch: int
    """Micro-batches that each worker keeps ready."""
    persistent_workers: bool = False
    """Keep the workers of evaluation sets between evaluations; those of training always stay."""
    source: Reader = Reader.EACH_RANK
    """Which ranks read items."""


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """What is particular to one of several evaluation sets."""

    every_steps: int | Literal["same"] | None = "same"
    """Optimizer steps between evaluations of this set; same = eval.every_steps, null = none during the run."""
    metrics: list[str] | None = None
    """Which of the group `metric` are computed on it; null = all."""
    prefix: str | None = None
    """What its metrics are called before the slash; null = eval/<set>."""

    def __post_init__(self) -> None:
        if isinstance(self.every_steps, int) and self.every_steps < 1:
            raise ValueError(f"every_steps={self.every_steps} is too small: it must be at least 1, same, or null.")
        if self.prefix is not None and not PREFIX.fullmatch(self.prefix):
            rule = "must be letters, digits, '_', '-', '.' and single slashes between them: test, eval/far."
            raise ValueError(f"prefix={self.prefix!r} {rule}")
        if self.prefix is not None and self.prefix.partition("/")[0] == "train":
            raise ValueError(f"prefix={self.prefix!r} is what training's own values are called. Choose another one.")


@dataclass(frozen=True, kw_only=True)
class Eval:
    """When a run is evaluated."""

    every_steps: int | None
    """Optimizer steps between evaluations; null = off."""
    at_start: bool = False
    """Evaluate before the first step, if the data hook returns an evaluation set."""
    at_end: bool
    """Evaluate after the last step, if the data hook returns an evaluation set."""
    micro_items: int | None
    """Items that one rank forwards at once; null = batch.micro_items."""
    sets: Mapping[str, EvalSet] = field(default_factory=dict)
    """By the name of an evaluation set, what is particular to it: its own cadence, metrics, prefix."""

    def of_set(self, name: str) -> EvalSet:
        """What is particular to a set; nothing if it is not listed."""
        return self.sets.get(name, EvalSet())

    def every_steps_of(self, name: str) -> int | None:
        """Optimizer steps between evaluations of a set; None = none during the run."""
        every = self.of_set(name).every_steps
        return every if every is None or isinstance(every, int) else self.every_steps

    @property
    def cadences(self) -> list[int]:
        """The steps between evaluations of any set."""
        return [every for every in (self.every_steps, *map(self.every_steps_of, self.sets)) if every]


@dataclass(frozen=True, kw_only=True)
class Log:
    """When a run is recorded."""

    every_steps: int
    """Optimizer steps between records; only on these steps the host waits for the device."""


class NonFinite(Enum):
    """What happens to a step whose loss or gradient norm is not finite."""

    STOP = "stop"
    """The run ends before the step is committed, with an error that says where the value came from."""
    SKIP = "skip"
    """The step is skipped, with its items. The host waits for the device in every step."""
    IGNORE = "ignore"
    """The step is applied."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What is done about values that are not finite."""

    non_finite: NonFinite = NonFinite.STOP
    """What to do if a loss or a gradient norm is not finite."""
    max_skipped: int = 10
    """With non_finite=skip, end the run after this many skipped steps in a row."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Where a sweep (-m) is written."""

    dir: str | None
    """The sweep's directory, which must not exist. null = multirun/<name>/<date>/<time>-<id>."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """The declaration of a whole run, typed and checked."""

    name: str
    version: str | None = None
    """Of the recipe, as its author counts."""
    model: Hook | None
    """None = there are several: `models`."""
    data: Hook
    loss: Hook | None
    """None = each phase has its own, and nothing is evaluated."""
    predict: Hook | None = None
    """What `runner predict` writes; None = the outputs of the loss hook."""
    models: Mapping[str, NamedModel] = field(default_factory=dict)
    """By name, if there are several."""
    phases: Mapping[str, TrainingPhase] = field(default_factory=dict)
    """By name and in their order, if models are trained in turns."""
    batch: Batch
    run: Run
    loader: Loader
    clip: Clip
    eval: Eval
    log: Log
    guard: Guard
    blocks: Blocks
    activation_checkpointing: ActivationCheckpointing
    compile: Compile
    sweep: Sweep
    hardware: Hardware
    launch: Launcher
    strategy: Strategy
    precision: Precision
    optimizer: Optimizer
    order: Ordering
    schedule: Schedule
    checkpoint: Checkpoint
    tracker: Mapping[str, Tracker]
    metric: Mapping[str, Metric]
    callback: Mapping[str, Callback]
    import_roots: tuple[str, ...]
    """Directories that hooks are imported from, first to last, before the rest of sys.path."""
    config: Mapping[str, Any]
    """The composed configuration that this was built from, with the content of files that it names: plain dicts, lists
    and scalars. This is what is frozen and shown: `*** from SOURCE` stands in place of each secret."""
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    """Those secrets, by dotted key; hooks and parts hold their values."""

    @property
    def hooks(self) -> dict[str, Hook]:
        """The hooks that there are, by their keys."""
        found = {"model": self.model, "data": self.data, "loss": self.loss, "predict": self.predict}
        found |= {f"models.{name}.model": one.model for name, one in self.models.items()}
        found |= {f"phases.{name}.loss": one.loss for name, one in self.phases.items()}
        return {key: hook for key, hook in found.items() if hook is not None}

    def of_model(self, name: str) -> "RunSpec":
        """The declaration as one of several models sees it: as if there were no other."""
        one = self.models[name]
        return replace(self, model=one.model, models={}, phases={}, **{group: vars(one)[group] for group in OWN})

    @property
    def world_size(self) -> int:
        """The number of ranks of the run."""
        return self.launch.nodes * self.hardware.processes
