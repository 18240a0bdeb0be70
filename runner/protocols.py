"""Every seam of the runner on one page.

A *part* is what one option file of a config group becomes: a final, frozen, keyword-only dataclass that is both the
schema of its YAML and its behaviour. Building a part touches no device, file or process; `check(spec)` yields what is
wrong with it in the company of the rest of the spec. The protocols below say what a part of each group must do. A new
option is one file with such a dataclass and one YAML file whose `_target_` names it.

No torch is imported here at run time: the command line reads this module before it knows whether it needs torch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer as TorchOptimizer

    from runner.errors import Fault
    from runner.spec.run_spec import RunSpec

__all__ = [
    "Axes",
    "Batches",
    "Callback",
    "Checkpoint",
    "Checkpointer",
    "Clip",
    "Data",
    "Hardware",
    "Launch",
    "Launcher",
    "Listener",
    "Loss",
    "MicroBatch",
    "Optimizer",
    "Part",
    "Precision",
    "Progress",
    "Scaler",
    "Schedule",
    "Scheduler",
    "State",
    "StepLoss",
    "Stored",
    "Strategy",
    "Tracker",
    "TrackerLog",
    "Trainable",
    "Update",
    "Weighed",
    "World",
]

NO_METRICS: Mapping[str, tuple["Tensor", "Tensor | int"]] = {}
NO_VALUES: Mapping[str, float] = {}


# ── What hooks exchange with the engine ─────────────────────────────────────────────────────────────────────────────


class Loss(NamedTuple):
    """What a loss hook returns for one micro-batch: a sum and what to divide it by.

    The gradient of an optimizer step is the gradient of the sum of all totals, divided once by the sum of all counts,
    over every micro-batch of every rank. A hook may return a plain scalar instead: the mean over its micro-batch.
    """

    total: "Tensor"
    """Scalar with a gradient: the loss summed over the micro-batch (over items, tokens, pixels …)."""
    count: "Tensor | int"  # type: ignore[assignment]  # tuple.count, which nobody calls
    """How many things `total` sums over. A tensor need not be on the host: the engine does not read it in the loop."""
    metrics: Mapping[str, tuple["Tensor", "Tensor | int"]] = NO_METRICS
    """Name to (sum, count), added up over micro-batches, rounds and ranks before they are divided."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a data hook returns."""

    train: Any
    """Map-style dataset: `__len__` and `__getitem__(index)`; `__getitems__(indices)` is used where it exists."""
    eval: Any = None
    """Map-style dataset to evaluate on, or None."""
    collate: Callable[[list[Any]], Any] | None = None
    """Items of one micro-batch to a batch; None is torch's default_collate."""


# ── What passes between the engine's parts ──────────────────────────────────────────────────────────────────────────


class MicroBatch(NamedTuple):
    """What one rank forwards at once."""

    batch: Any
    """What collate returned, on the rank's device."""
    items: int
    """How many items of it count. 0 marks a filler, forwarded so that every rank runs as many rounds, never counted."""


class Batches(NamedTuple):
    """One rank's share of one optimizer step."""

    rounds: Sequence[MicroBatch]
    """One per accumulation round; equally many on every rank."""
    items: int
    """Items of the whole step, over all ranks and rounds."""


class Weighed(NamedTuple):
    """What came of one micro-batch: its total is `value` times `weight`, left unmultiplied until somebody logs it."""

    value: "Tensor"
    """Scalar: the hook's total, or its mean."""
    weight: int
    """1 for a total, the micro-batch's items for a mean, 0 for a filler."""
    count: "Tensor | int"  # type: ignore[assignment]  # tuple.count, which nobody calls
    """What the total sums over."""
    is_mean: bool
    """The hook returned a mean over items: every rank knows its count beforehand."""
    metrics: Mapping[str, tuple["Tensor", "Tensor | int"]] = NO_METRICS
    """As the hook returned them; none for a filler."""


class StepLoss(NamedTuple):
    """What `forward_backward` leaves behind. Nothing in it was read on the host."""

    rounds: Sequence[Weighed]
    """This rank's, one per round."""
    count: "Tensor | int"  # type: ignore[assignment]  # tuple.count, which nobody calls
    """Of the whole step: summed over rounds and ranks."""


class Update(NamedTuple):
    """What `update` did."""

    stepped: bool
    """False if the step was skipped (an fp16 overflow); the schedule then does not advance."""
    grad_norm: "Tensor | None" = None
    """2-norm of the divided gradient before clipping. There if it was measured or is needed to clip."""
    record: Mapping[str, float] = NO_VALUES
    """What else is logged of the step, by name."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """How gradients are clipped, after division by the global count."""

    norm: float | None = None
    """Largest 2-norm of the whole gradient; null = off."""
    value: float | None = None
    """Largest absolute value of an element; null = off."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The mesh of ranks that a strategy asks for: pure arithmetic, so that it can be checked before launch."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    data: tuple[str, ...]
    """The axes along which the items of a step are cut; ranks that differ only on other axes read the same items."""

    @property
    def data_ranks(self) -> int:
        """Into how many shares the items of a step are cut."""
        product = 1
        for name, size in zip(self.names, self.sizes, strict=True):
            product *= size if name in self.data else 1
        return product


@dataclass(kw_only=True)
class State:
    """What a checkpoint holds: `tensors`, sharded or whole, and `values` that JSON can say, alike on every rank."""

    tensors: dict[str, "Tensor"] = field(default_factory=dict)
    """By dotted name: model.<parameter>, optimizer.<parameter>.<key>, callback.<name>.<key>, rng.rank_<n>.<key>"""
    values: dict[str, Any] = field(default_factory=dict)


class Stored(NamedTuple):
    """A tensor in a checkpoint."""

    shape: tuple[int, ...]
    dtype: "torch.dtype"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands."""

    step: int
    """Optimizer steps done."""
    position: int
    """Items consumed since the run began, over all epochs."""


# ── World ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class World(Protocol):
    """The ranks of a run, seen from one of them. A single process is a world of one, with the same methods.

    Every method that is called collective must be called by all ranks in the same order.
    """

    rank: int
    size: int
    local_rank: int
    device: "torch.device"

    @property
    def is_main(self) -> bool:
        """Rank 0."""
        ...

    def sum(self, values: "Tensor") -> "Tensor":
        """Sum elementwise over ranks; the same result on every rank. Collective."""
        ...

    def start_sum(self, values: "Tensor") -> Callable[[], "Tensor"]:
        """Begin `sum` without waiting; call what is returned to have the result. Collective."""
        ...

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value, on every rank. Collective."""
        ...

    def gather_objects(self, value: Any) -> list[Any]:
        """Everyone's value in rank order, on every rank. Collective."""
        ...

    def any(self, flag: bool) -> bool:
        """True on every rank if it is on one. Collective, on the host."""
        ...

    def barrier(self) -> None:
        """Wait for all ranks. Collective."""
        ...

    def main_first(self) -> AbstractContextManager[None]:
        """Rank 0 runs the block first, the others after it. Collective."""
        ...

    def mesh(self, axes: Axes) -> "DeviceMesh":
        """The device mesh of these axes. Collective."""
        ...

    def aside(self) -> "World":
        """The same ranks for one thread beside the main one. Collective.

        Its host-side methods (objects, any, barrier) meet only those that other ranks call on theirs; use no others.
        """
        ...

    def close(self) -> None:
        """Leave the process group. Collective."""
        ...


# ── Parts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Part(Protocol):
    """What every option of every group can do."""

    def check(self, spec: "RunSpec") -> Iterable["Fault"]:
        """What is wrong with this part beside the others. Touches no device, starts no process."""
        ...


class Hardware(Part, Protocol):
    """The devices of one machine."""

    processes: int
    """How many ranks this machine runs."""

    @property
    def backend(self) -> str:
        """What torch.distributed calls the collectives of this hardware: gloo, nccl, …"""
        ...

    @property
    def can_fork(self) -> bool:
        """Whether ranks may be forked from a process that has imported torch."""
        ...

    @property
    def pins_memory(self) -> bool:
        """Whether batches are read into page-locked memory, from which the device copies without waiting."""
        ...

    def count(self) -> int:
        """How many ranks this machine can hold, one device each."""
        ...

    def claim(self, local_rank: int) -> "torch.device":
        """Make this process use its device and its share of the cores. Called once, before any tensor is made."""
        ...

    def has_dtype(self, dtype: "torch.dtype") -> bool:
        """Whether it computes in this type."""
        ...


class Scaler(Protocol):
    """Keeps gradients of a narrow type in its range: losses are multiplied before backward, gradients divided after.

    It is meant for the gradient of a mean: what a loss sums over is divided off first, roughly if need be.
    """

    scales: bool
    """Whether there is ever anything to undo; constant of the class."""

    @property
    def scale(self) -> float:
        """By what to multiply the losses of this step; the same on every rank."""
        ...

    def unscale(
        self, gradients: Sequence["Tensor"], factor: "Tensor | float", found_anywhere: Callable[["Tensor"], "Tensor"]
    ) -> "tuple[Tensor | float, bool]":
        """Undo the multiplication, and `factor` in the same pass. Waits for the device if there is anything to undo.

        Args:
            gradients: this rank's; multiplied in place.
            factor: what the gradients are to be multiplied by besides.
            found_anywhere: from whether this rank found a value that is not finite (0 or 1), whether any rank did.

        Returns:
            What is left of the factor, and whether all gradients of all ranks are finite.
        """
        ...

    def record(self) -> Mapping[str, float]:
        """What is logged of it."""
        ...

    def state(self) -> dict[str, Any]:
        """What JSON can say; the same on every rank."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from there; from {} begin afresh."""
        ...


class Precision(Part, Protocol):
    """In which types a model computes."""

    @property
    def param_dtype(self) -> "torch.dtype":
        """Of the weights as the forward sees them under a sharding strategy."""
        ...

    @property
    def weight_dtype(self) -> "torch.dtype":
        """Of the weights that the optimizer updates, and of what it keeps of them."""
        ...

    @property
    def reduce_dtype(self) -> "torch.dtype":
        """Of gradients while they are summed over ranks by a sharding strategy."""
        ...

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """A context, entered anew for each forward, in which the hook runs. May be entered many times in turn."""
        ...

    def scaler(self) -> Scaler:
        """A fresh one for a run."""
        ...

    def convert(self, model: "Module", hardware: Hardware) -> None:
        """Make of the model that the hook returned one of this precision, in place; names stay as they are."""
        ...

    def plan(self, build_model: Callable[[], "Module"]) -> Iterable[str]:
        """What `convert` will do to the model's layers, a line each. Whoever asks may build without values, on meta."""
        ...


class Optimizer(Part, Protocol):
    """Which optimizer, and which parameters it treats how."""

    def build(self, named_parameters: Iterable[tuple[str, "Parameter"]], *, items: int) -> "TorchOptimizer":
        """The optimizer over these parameters, named as the model names them, for steps of so many items."""
        ...


class Scheduler(Protocol):
    """Moves learning rates as optimizer steps go by."""

    def step(self) -> None:
        """One optimizer step was taken."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What JSON can say."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there."""
        ...


class Schedule(Part, Protocol):
    """How learning rates move over the steps of a run."""

    def build(self, optimizer: "TorchOptimizer", *, steps: int) -> Scheduler:
        """For a run of so many optimizer steps."""
        ...


class Trainable(Protocol):
    """Model and optimizer as they live on the ranks: the engine's only handle on them. All methods are collective."""

    def forward_backward(self, batches: Batches) -> StepLoss:
        """Forward and backward every round; gradients are summed over rounds and ranks, divided by `update`."""
        ...

    def update(self, *, measure: bool) -> Update:
        """Divide by the step's count, clip, step, and clear the gradients. `measure` asks for the gradient's norm."""
        ...

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[Weighed]:
        """The hook's loss on each, without gradients, the model in evaluation mode until the last was taken."""
        ...

    def state(self) -> State:
        """Model and optimizer by the model's own names. Tensors are the live ones, not copies."""
        ...

    def load_state(self, read: Callable[[State], None], stored: Mapping[str, Stored]) -> None:
        """Continue from a checkpoint.

        Args:
            read: fills the tensors of the state that it is given in place, and its values.
            stored: what the checkpoint holds, by name.

        Raises:
            CheckpointError: names what is missing, unexpected or misshapen; all of it.
        """
        ...

    @property
    def optimizer(self) -> "TorchOptimizer":
        """What a schedule moves."""
        ...

    @property
    def model(self) -> "Module":
        """The user's model, for callbacks and hooks; perhaps sharded, never wrapped."""
        ...


class Strategy(Part, Protocol):
    """How model and optimizer live on the ranks."""

    def axes(self, num_ranks: int) -> Axes:
        """The mesh for so many ranks.

        Raises:
            ValueError: they cannot be arranged so; the message says which numbers can.
        """
        ...

    def prepare(
        self,
        *,
        build_model: Callable[[], "Module"],
        build_optimizer: Callable[[Iterable[tuple[str, "Parameter"]]], "TorchOptimizer"],
        loss: Callable[["Module", Any], "Loss | Tensor"],
        precision: Precision,
        clip: Clip,
        world: World,
    ) -> Trainable:
        """Build the model and its optimizer and place them. Collective."""
        ...


class TrackerLog(Protocol):
    """An open tracker. Lives on rank 0 only."""

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Record what was measured at an optimizer step."""
        ...

    def close(self) -> None:
        """Flush and let go."""
        ...


class Tracker(Part, Protocol):
    """Where measurements go."""

    def open(self, run_dir: Path, *, config: Mapping[str, Any], step: int) -> TrackerLog:
        """Begin, or continue after `step` (0 at first): what was recorded beyond it is dropped. Called on rank 0."""
        ...


class Checkpointer(Protocol):
    """Saves and restores for one run. Methods are collective."""

    def save(self, state: State, *, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Commit, then drop what retention does not keep; perhaps in the background, from a copy of the state."""
        ...

    def poll(self, state: Callable[[], State]) -> None:
        """Between saves, now and then: raise what has failed in the background. Does not wait for what is under way.

        Args:
            state: what a save would be given now. The first time is after the run's first step: a save that is to be
                quick may make its preparations.
        """
        ...

    def latest(self) -> Path | None:
        """The newest committed checkpoint.

        Raises:
            CheckpointError: it is corrupted; names the file and the next older commit.
        """
        ...

    def stored(self, path: Path) -> Mapping[str, Stored]:
        """What is held, by name."""
        ...

    def load(self, path: Path, state: State) -> None:
        """Fill the state's tensors in place and replace its values."""
        ...

    def close(self) -> None:
        """Wait for what is under way."""
        ...


class Checkpoint(Part, Protocol):
    """When and how a run is saved."""

    every_steps: int | None
    every_minutes: float | None
    at_end: bool

    def open(self, run_dir: Path, world: World) -> Checkpointer:
        """For this run's directory. Collective."""
        ...


class Listener(Protocol):
    """A callback at work in one run. Every rank has one; what it decides must be the same on all."""

    def after_step(self, trainable: Trainable, progress: Progress) -> None:
        """An optimizer step was taken. Called only if the callback's `every_step` is true."""
        ...

    def after_eval(self, metrics: Mapping[str, float], progress: Progress) -> str | None:
        """An evaluation ended; metrics are the same on all ranks. A returned sentence ends the run and says why."""
        ...

    def evaluating(self, trainable: Trainable) -> AbstractContextManager[None]:
        """Entered around each evaluation, left before `after_eval`."""
        ...

    def tensors(self, trainable: Trainable) -> dict[str, "Tensor"]:
        """What JSON cannot say, live: saved as callback.<name>.<key>, and filled in place before `load_state`.

        Called before the first step, too, so that whatever it cannot work with is said before anything is trained.
        """
        ...

    def state(self) -> dict[str, Any]:
        """What JSON can say."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from there."""
        ...


class Callback(Part, Protocol):
    """Something that listens to a run."""

    every_step: bool
    """Whether `after_step` is called; constant of the class."""

    def build(self) -> Listener:
        """A listener with fresh state."""
        ...


class Launch(Protocol):
    """One attempt at a run, in the launching process of one machine."""

    def begin(self, freeze: Callable[[], Path]) -> Path:
        """The spec file of this attempt.

        Args:
            freeze: writes it. Of several machines one calls it, and all are given its file.

        Raises:
            RunFailed: a machine does not see the file.
        """
        ...

    def run(self, spec_path: Path) -> None:
        """Start this machine's ranks with the spec's path, wait, and return when all are done.

        Raises:
            RunFailed: a rank failed and no restart is left.
            Interrupted: a signal ended the run.
        """
        ...


class Launcher(Part, Protocol):
    """Starts the ranks of a run and sees them end."""

    @property
    def nodes(self) -> int:
        """How many machines take part, with hardware.processes ranks each."""
        ...

    def open(self, spec: "RunSpec") -> AbstractContextManager[Launch]:
        """An attempt that nothing was written or started for yet; several machines have met when it is entered.

        Raises:
            SpecError: the machines were told different things.
            RunFailed: a machine did not come.
        """
        ...
