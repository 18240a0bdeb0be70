"""The group `callback`.

A callback's listener implements those of the protocols below that it needs, and no other: the engine looks for them
once, when the run is built, so that events without listeners cost nothing. Every rank has a listener, and all methods
are called on every rank in the same order: a listener must make the same decisions on all ranks.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from runner.protocols.part import Part
from runner.protocols.run import Outcome, Run
from runner.protocols.state import Stateful
from runner.protocols.strategy import Trainable

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class BeforeRun(Protocol):
    """Listens to the beginning of an attempt."""

    def before_run(self, run: Run) -> None:
        """Called when everything is built, restored and open, before the first step."""
        ...


@runtime_checkable
class AfterRun(Protocol):
    """Listens to the end of an attempt."""

    def after_run(self, run: Run, outcome: Outcome) -> None:
        """Called when the attempt has ended, while trackers are still open.

        With Outcome.FAILED it may not call collectives, since other ranks may be gone, and its errors are only logged.
        It is not called on a rank that is killed because another one failed.
        """
        ...


@runtime_checkable
class AfterStep(Protocol):
    """Listens to optimizer steps."""

    def after_step(self, run: Run) -> None:
        """Called after an optimizer step, but not after a skipped one."""
        ...


@runtime_checkable
class AroundStep(Protocol):
    """Provides a context for every step, including skipped ones; for example a profiler."""

    def around_step(self, run: Run) -> AbstractContextManager[None]:
        """Return a context, entered before the step's forward and exited after its update, before `after_step`."""
        ...


@runtime_checkable
class AroundEval(Protocol):
    """Provides a context for every evaluation."""

    def around_eval(self, run: Run) -> AbstractContextManager[None]:
        """Return a context, entered before an evaluation and exited before `after_eval`."""
        ...


@runtime_checkable
class AfterEval(Protocol):
    """Listens to evaluations, and may end the run."""

    def after_eval(self, run: Run, metrics: Mapping[str, float]) -> str | None:
        """Called after an evaluation; metrics are the same on all ranks. Return a reason to end the run, or None."""
        ...


@runtime_checkable
class AfterSave(Protocol):
    """Listens to committed checkpoints."""

    def after_save(self, run: Run, checkpoint: Path) -> None:
        """Called after a checkpoint was committed; with asynchronous saving, up to about a second later."""
        ...


@runtime_checkable
class HoldsTensors(Protocol):
    """Has tensors that are saved in checkpoints."""

    def tensors(self, trainable: Trainable) -> dict[str, "Tensor"]:
        """The live tensors, by name: saved as callback.<callback>.<name>, and loaded in place before `load_state_dict`.

        First called before training, so that a listener can reject a model that it cannot work with; with
        batch.micro_items=auto also on a model that is only built to measure memory.
        """
        ...


Listener = BeforeRun | AfterRun | AfterStep | AroundStep | AroundEval | AfterEval | AfterSave | Stateful | HoldsTensors


class Callback(Part, Protocol):
    """An option that adds a listener to a run."""

    def build(self) -> Listener:
        """A listener with fresh state; any object that implements at least one of the protocols above."""
        ...
