"""The group `callback`.

A callback's listener implements those of the protocols below that it needs, and no other: the engine looks for them
once, when the run is built, so that what nobody listens to costs nothing. Every rank has a listener, and all methods
are called on every rank in the same order: what a listener decides must be the same on all of them.
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
        """Everything is built, restored and open; no step has been taken."""
        ...


@runtime_checkable
class AfterRun(Protocol):
    """Listens to the end of an attempt."""

    def after_run(self, run: Run, outcome: Outcome) -> None:
        """The attempt ended; trackers are still open.

        With Outcome.FAILED nothing collective may be called, since other ranks may be gone, and what is raised is only
        logged. A rank that is killed because another one failed does not get here.
        """
        ...


@runtime_checkable
class AfterStep(Protocol):
    """Listens to steps."""

    def after_step(self, run: Run) -> None:
        """An optimizer step was taken; not called for a step that was skipped."""
        ...


@runtime_checkable
class AroundStep(Protocol):
    """Stands around every step, skipped ones included: a profiler."""

    def around_step(self, run: Run) -> AbstractContextManager[None]:
        """Entered before the step's forward, left after its update and before `after_step`."""
        ...


@runtime_checkable
class AroundEval(Protocol):
    """Stands around every evaluation."""

    def around_eval(self, run: Run) -> AbstractContextManager[None]:
        """Entered before an evaluation, left before `after_eval`."""
        ...


@runtime_checkable
class AfterEval(Protocol):
    """Listens to evaluations, and may end the run."""

    def after_eval(self, run: Run, metrics: Mapping[str, float]) -> str | None:
        """An evaluation ended; metrics are the same on all ranks. A returned sentence ends the run and says why."""
        ...


@runtime_checkable
class AfterSave(Protocol):
    """Listens to checkpoints."""

    def after_save(self, run: Run, checkpoint: Path) -> None:
        """A checkpoint was committed; with an asynchronous save, up to about a second ago."""
        ...


@runtime_checkable
class HoldsTensors(Protocol):
    """Has tensors that go into checkpoints."""

    def tensors(self, trainable: Trainable) -> dict[str, "Tensor"]:
        """The live tensors, by name: saved as callback.<callback>.<name>, and filled in place before `load_state_dict`.

        First called before anything is trained, so that a listener can refuse a model that it cannot work with; with
        batch.micro_items=auto also on a model that is only there to measure memory.
        """
        ...


Listener = BeforeRun | AfterRun | AfterStep | AroundStep | AroundEval | AfterEval | AfterSave | Stateful | HoldsTensors


class Callback(Part, Protocol):
    """Something that listens to a run."""

    def build(self) -> Listener:
        """A listener with fresh state; any object that implements at least one of the protocols above."""
        ...
