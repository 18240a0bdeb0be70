"""The group `checkpoint`: when and how a run is saved. Reading is not an option; it is in `storage/`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from runner.protocols.part import Part
from runner.protocols.state import Progress, State
from runner.protocols.world import World

if TYPE_CHECKING:
    from torch import Tensor


class Checkpointer(Protocol):
    """Saves the checkpoints of one run. All methods are collective."""

    def save(self, state: "State[Tensor]", *, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Commit a checkpoint, then delete old ones; possibly in the background, from a copy of the state.

        The copy may go on until `finish_copy` returns.
        """
        ...

    def poll(self, state: "Callable[[], State[Tensor]]") -> None:
        """Called from time to time between saves: raise errors of background saves, without waiting for running ones.

        Args:
            state: returns the state that a save would get now. The first call comes after the run's first step, so that
                later saves can be prepared.
        """
        ...

    def finish_copy(self, *, after_forward: bool) -> None:
        """Called before anything but a forward and its backward changes the state that `save` was given.

        Called in every step, so it must cost nothing if nothing is being copied. Not collective.

        Args:
            after_forward: since the last step, there was one forward and backward; otherwise none.
        """
        ...

    def wait(self) -> None:
        """Wait for background saves to finish.

        Raises:
            CheckpointError: a background save failed.
        """
        ...


class Checkpoint(Part, Protocol):
    """When and how checkpoints of a run are saved."""

    every_steps: int | None
    every_minutes: float | None
    at_end: bool

    def open(self, run_dir: Path, world: World) -> Checkpointer:
        """Open a checkpointer for this run's directory. Collective."""
        ...
