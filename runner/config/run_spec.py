"""What a run is: every section of a recipe, typed. `config/read.py` makes one of a composed configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from runner.protocols import (
    Callback,
    Checkpoint,
    Clip,
    Hardware,
    Launcher,
    Metric,
    Optimizer,
    Precision,
    Schedule,
    Strategy,
    Tracker,
)


@dataclass(frozen=True, kw_only=True)
class Hook:
    """One of the user's functions, and what the recipe hands to it. `config/hooks.py` finds and calls it."""

    target: str
    """Dotted path of a callable: user_hooks.digits.build_model."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments; a nested mapping with a `_target_` of its own is built first."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Items of one optimizer step and how they are cut. Two of the first and the other two follow."""

    items: int
    """Global batch of one optimizer step."""
    micro_items: int
    """What one rank forwards at once."""
    accumulate: int
    """Accumulation rounds of a full step: items / (micro_items × data ranks)."""
    auto: bool = False
    """micro_items is the most that it can be: the run finds what fits into memory before its first step."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """How long, from which seed, where."""

    steps: int
    """Optimizer steps of the whole run; schedules span them."""
    seed: int
    deterministic: bool
    """Only deterministic kernels: two runs of one spec are bitwise equal on one kind of hardware."""
    stop_at_step: int | None
    """End this attempt after that step with a commit; the schedule keeps its length. null = off."""
    dir: str | None
    """The run's directory; it must not exist. null = outputs/<name>/<date>/<time>-<id>."""


@dataclass(frozen=True, kw_only=True)
class Loader:
    """How items are read and put into order."""

    workers: int
    """Processes that read items ahead of each rank; 0 = read in the rank itself."""
    prefetch: int
    """Micro-batches that each worker keeps ready."""
    shuffle: bool
    """A fresh order each epoch, from run.seed; false = the dataset's own order."""


@dataclass(frozen=True, kw_only=True)
class Eval:
    """When to evaluate."""

    every_steps: int | None
    """Optimizer steps between evaluations; null = off."""
    at_end: bool
    micro_items: int | None
    """Items that one rank forwards at once; null = batch.micro_items."""


@dataclass(frozen=True, kw_only=True)
class Log:
    """When to record."""

    every_steps: int
    """Optimizer steps between records; the only steps on which the host waits for the device."""


class NonFinite(Enum):
    """What becomes of a step whose loss or gradient norm is not finite."""

    STOP = "stop"
    """The run ends, before anything of it is committed, and says where it came from."""
    SKIP = "skip"
    """The step is left out and its items with it. The host waits for the device in every step."""
    IGNORE = "ignore"
    """It is taken."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What is done about numbers that are not finite."""

    non_finite: NonFinite = NonFinite.STOP
    """About a loss or a gradient norm."""
    max_skipped: int = 10
    """Steps left out in a row after which the run ends, with non_finite=skip."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Which modules of the model are its repeated blocks: what is recomputed, compiled or sharded as one piece."""

    classes: list[str] = field(default_factory=list)
    """Names of their classes; empty = those that the model names itself in `_no_split_modules`."""


class Recompute(Enum):
    """Of which activations a backward computes anew what the forward did not keep."""

    NONE = "none"
    """None: all are kept."""
    BLOCKS = "blocks"
    """Those inside each block; only what enters it is kept."""
    SELECTIVE = "selective"
    """The cheap ones inside each block; what matrix products, convolutions and attention give is kept."""


@dataclass(frozen=True, kw_only=True)
class ActivationCheckpointing:
    """Memory for time: activations that are computed again in backward instead of being kept."""

    what: Recompute = Recompute.NONE
    """Which."""
    every: int = 1
    """Only each n-th block; 1 = all."""


class Compiled(Enum):
    """What torch.compile makes one graph of."""

    NONE = "none"
    """Nothing."""
    BLOCKS = "blocks"
    """Each block: equal ones are compiled once."""
    MODEL = "model"
    """The whole model."""


@dataclass(frozen=True, kw_only=True)
class Compile:
    """What torch.compile does with the model."""

    what: Compiled = Compiled.NONE
    """How much of it."""
    backend: str = "inductor"
    """Which compiler."""
    mode: str | None = None
    """Of inductor: default, reduce-overhead, max-autotune, max-autotune-no-cudagraphs. null = default."""
    dynamic: bool | None = None
    """Compile for all shapes at once; null = when a second shape is met."""

    def __post_init__(self) -> None:
        if self.mode is not None and self.backend != "inductor":
            raise ValueError(f"mode={self.mode} is inductor's, but compile.backend={self.backend}. Use null.")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Where a sweep (-m) goes."""

    dir: str | None
    """The sweep's directory; it must not exist. null = multirun/<name>/<date>/<time>-<id>."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A whole run, typed and without contradictions."""

    name: str
    model: Hook
    data: Hook
    loss: Hook
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
    schedule: Schedule
    checkpoint: Checkpoint
    tracker: Mapping[str, Tracker]
    metric: Mapping[str, Metric]
    callback: Mapping[str, Callback]
    import_roots: tuple[str, ...]
    """Directories that hooks are imported from, first to last, ahead of what Python would find by itself."""
    config: Mapping[str, Any]
    """The composed configuration that this was made of, with what stood in files that it names: plain dicts, lists and
    scalars. This is what is frozen."""

    @property
    def world_size(self) -> int:
        """Ranks of the whole run."""
        return self.launch.nodes * self.hardware.processes
