"""The group `checkpoint`: when and how a run is saved. Reading is one concrete thing, in `storage/`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from runner.protocols.part import Part
from runner.protocols.state import Progress, State
from runner.protocols.world import World

if TYPE_CHECKING:
    from torch import Tensor


class Checkpointer(Protocol):
    """Saves one run. Methods are collective."""

    def save(self, state: "State[Tensor]", *, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Commit, then drop what retention does not keep; perhaps in the background, from a copy of the state."""
        ...

    def poll(self, state: "Callable[[], State[Tensor]]") -> None:
        """Between saves, now and then: raise what has failed in the background, without waiting for what is under way.

        Args:
            state: what a save would be given now. The first call comes after the run's first step: a save that is to be
                quick may make its preparations.
        """
        ...

    def wait(self) -> None:
        """Return once nothing is under way any more.

        Raises:
            CheckpointError: what was under way failed.
        """
        ...


class Checkpoint(Part, Protocol):
    """When and how a run is saved."""

    every_steps: int | None
    every_minutes: float | None
    at_end: bool

    def open(self, run_dir: Path, world: World) -> Checkpointer:
        """For this run's directory. Collective."""
        ...
