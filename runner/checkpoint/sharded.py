"""Every rank writes its own share; rank 0 commits. A checkpoint resumes under any strategy and number of ranks."""

import copy
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from runner.checkpoint.background import Background
from runner.checkpoint.retention import Retention
from runner.checkpoint.save import Saved, check_cadence, open_checkpoints, save_into
from runner.config.sections import flattened
from runner.errors import Fault
from runner.protocols import Progress, State, World
from runner.storage.names import to_names

if TYPE_CHECKING:
    from torch import Tensor

    from runner.checkpoint.transfer import Transfer
    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class Sharded:
    """Save into <run>/checkpoints/step_<n>, one safetensors file per rank, each checkpoint committed by one rename."""

    every_steps: int | None = 500
    """Optimizer steps between checkpoints; null = off."""
    every_minutes: float | None = None
    """Minutes between checkpoints, beside every_steps; null = off."""
    at_end: bool = True
    """Save when the run ends."""
    retention: Retention = flattened(Retention)
    """Which committed checkpoints are kept."""
    asynchronous: bool = False
    """Save from a copy in host memory while training goes on. A failure is raised later: the next poll or save."""

    def __post_init__(self) -> None:
        check_cadence(every_steps=self.every_steps, every_minutes=self.every_minutes)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Check what retention needs of the run."""
        return self.retention.check(spec)

    def open(self, run_dir: Path, world: World) -> "ShardedCheckpointer":
        """For this run's directory; removes what a killed attempt left half written. Collective."""
        checkpoints = open_checkpoints(run_dir, world)
        if not self.asynchronous:
            return ShardedCheckpointer(checkpoints, self, world, background_world=world)
        # Half a second, which the first save would otherwise let the run wait for.
        importlib.import_module("runner.checkpoint.transfer")
        return ShardedCheckpointer(checkpoints, self, world, background_world=world.duplicate())


@final
class ShardedCheckpointer:
    """Saves one run. All methods are collective."""

    def __init__(self, checkpoints: Path, part: Sharded, world: World, *, background_world: World) -> None:
        self._checkpoints = checkpoints
        self._part = part
        self._retention = part.retention
        self._world = world
        self._background_world = background_world
        self._background = Background()
        self._made: Transfer | None = None

    def save(self, state: "State[Tensor]", *, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Commit, then drop what retention does not keep. If asynchronous, both happen after the return.

        Raises:
            CheckpointError: it, or the one before it in the background, could not be written; the last commit stands as
                it was. Or it was, but `metrics` has other evaluations than the one that keep_best goes by.
        """
        if self._part.asynchronous:
            self._save_later(state, progress, metrics)
            return
        transfer = self._transfer()
        saved = Saved(values=state.values, progress=progress, metrics=metrics)
        save_into(
            self._checkpoints,
            self._world,
            saved,
            self._retention,
            write=lambda world, partial: transfer.write(world, partial, to_names(state)),
        )

    def _save_later(self, state: "State[Tensor]", progress: Progress, metrics: Mapping[str, float]) -> None:
        """Copy what the next step changes; the rest is done in the background, by a thread on each rank."""
        self._background.wait()
        saved = Saved(values=copy.deepcopy(state.values), progress=progress, metrics=dict(metrics))
        write = self._transfer().stage(self._world, self._checkpoints, to_names(state))
        self._background.start(
            lambda: save_into(self._checkpoints, self._background_world, saved, self._retention, write=write)
        )

    def _transfer(self) -> "Transfer":
        """Made when it is first needed: it brings torch.distributed.checkpoint with it."""
        from runner.checkpoint.transfer import Transfer

        self._made = self._made or Transfer()
        return self._made

    def poll(self, state: "Callable[[], State[Tensor]]") -> None:
        """Nothing, or that a save in the background has failed. Prepares the first of them.

        Raises:
            CheckpointError: as `save`.
        """
        if self._part.asynchronous and self._made is None:
            self._transfer().prepare(self._world, self._checkpoints, to_names(state()))
        # A rank may not know yet what another knows: they agree, and then wait for the end that all come to.
        if self._part.asynchronous and self._world.any(self._background.failed):
            self._background.wait()

    def wait(self) -> None:
        """Wait for what is under way.

        Raises:
            CheckpointError: as `save`.
        """
        self._background.wait()
