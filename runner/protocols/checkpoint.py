"""The group `checkpoint`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from runner.protocols.part import Part
from runner.protocols.state import Progress, State, StoredTensor
from runner.protocols.world import World


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

    def stored(self, path: Path) -> Mapping[str, StoredTensor]:
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
