"""Every rank writes what it holds; rank 0 commits. A checkpoint resumes under any strategy and number of ranks."""

import copy
import importlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from runner.checkpoint.background import Background
from runner.checkpoint.retention import Retention
from runner.checkpoint.save import SaveMetadata, check_cadence, open_checkpoints, save_into
from runner.config.sections import flattened
from runner.errors import Fault
from runner.protocols import Progress, State, World
from runner.storage.history import History

if TYPE_CHECKING:
    from torch import Tensor

    from runner.checkpoint.rank_files import RankFiles
    from runner.config.run_spec import RunSpec


logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class Sharded:
    """Save into <run>/checkpoints/step_<n>, a safetensors file per rank; a rename commits each checkpoint."""

    every_steps: int | None = 500
    """Optimizer steps between checkpoints; null = off."""
    every_minutes: float | None = None
    """Minutes between checkpoints, in addition to every_steps; null = off."""
    at_end: bool = True
    """Save when the run ends."""
    retention: Retention = flattened(Retention)
    """Which committed checkpoints are kept."""
    link_frozen: bool = True
    """Hard-link the files of frozen parameters that have not changed since the newest checkpoint; false = copies."""
    asynchronous: bool = False
    """Save while training goes on, from a copy that is made during the next forward. Raises in a later poll or save."""

    def __post_init__(self) -> None:
        check_cadence(every_steps=self.every_steps, every_minutes=self.every_minutes)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Check what retention needs of the run."""
        return self.retention.check(spec)

    def open(self, run_dir: Path, world: World) -> "ShardedCheckpointer":
        """Open the run's directory, and remove what a killed attempt left behind. Collective."""
        history = open_checkpoints(run_dir, world)
        if not self.asynchronous:
            return ShardedCheckpointer(history, self, world, background_world=world)
        # Takes half a second, for which the run would otherwise wait at the first save.
        importlib.import_module("runner.checkpoint.rank_files")
        return ShardedCheckpointer(history, self, world, background_world=world.duplicate())


@final
class ShardedCheckpointer:
    """Saves one run. All methods are collective."""

    def __init__(self, history: History, part: Sharded, world: World, *, background_world: World) -> None:
        self._history = history
        self._part = part
        self._retention = part.retention
        self._world = world
        self._background_world = background_world
        self._background = Background()
        self._made: RankFiles | None = None
        self._copying = False

    def save(self, state: "State[Tensor]", *, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Commit a checkpoint, then delete those that retention does not keep; in the background if asynchronous.

        Raises:
            CheckpointError: as `save_into`; if asynchronous, from the save before.
        """
        if self._part.asynchronous:
            self._save_later(state, progress, metrics)
            return
        write = self._rank_files().live(self._world, self._history.checkpoints, state)
        saved = SaveMetadata(values=state.values, progress=progress, metrics=metrics)
        save_into(self._history, self._world, saved, self._retention, write=write)

    def _save_later(self, state: "State[Tensor]", progress: Progress, metrics: Mapping[str, float]) -> None:
        """Copy what the next forward changes; a thread on each rank copies the rest during the forward, and writes."""
        self.wait()
        saved = SaveMetadata(values=copy.deepcopy(state.values), progress=progress, metrics=dict(metrics))
        rank_files = self._rank_files()
        self._copying = True
        write = rank_files.stage(self._world, self._history.checkpoints, state)

        def commit() -> None:
            world = self._background_world
            if torn := sorted({name for names in world.gather_objects(rank_files.torn()) for name in names}):
                rule = "a forward changed it for the first time, while it was copied; later saves copy it before that"
                logger.warning("step_%d is not saved: %s: %s", progress.step, ", ".join(torn), rule)
                return
            save_into(self._history, world, saved, self._retention, write=write)

        self._background.start(commit)

    def _rank_files(self) -> "RankFiles":
        """Made when first needed, since it imports torch.distributed.checkpoint."""
        from runner.checkpoint.rank_files import RankFiles

        self._made = self._made or RankFiles(link_frozen=self._part.link_frozen)
        return self._made

    def poll(self, state: "Callable[[], State[Tensor]]") -> None:
        """Raise if a save in the background has failed. The first call prepares the first save.

        Raises:
            CheckpointError: as `save`.
        """
        if self._part.asynchronous and self._made is None:
            self._rank_files().prepare(self._world, self._history.checkpoints, state())
        # Another rank may know of a failure first: agree on it, then wait until every rank has it.
        if self._part.asynchronous and self._world.any(self._background.failed):
            self.wait()

    def finish_copy(self, *, after_forward: bool) -> None:
        """Wait until the state of an asynchronous save is copied."""
        if self._copying:
            self._copying = False
            self._rank_files().finish_copy(after_forward=after_forward)

    def wait(self) -> None:
        """Wait for a save in the background.

        Raises:
            CheckpointError: as `save`.
        """
        self.finish_copy(after_forward=False)
        self._background.wait()
