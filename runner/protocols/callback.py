"""The group `callback`."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from runner.protocols.part import Part
from runner.protocols.state import Progress
from runner.protocols.strategy import Trainable

if TYPE_CHECKING:
    from torch import Tensor


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
