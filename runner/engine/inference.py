"""Builds what a job needs that does not train: the data, and the model with weights of a checkpoint or an export."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.config.task import Task
from runner.engine.build import open_data
from runner.engine.evaluate import prefixes
from runner.engine.listeners import Listeners, build_listeners
from runner.engine.placing import place
from runner.engine.trackers import NoTrackers
from runner.model.named import Call
from runner.protocols import Data, Placed, Progress, SavedState, State, Trackers, Trainable, World
from runner.storage.checkpoints import Checkpoints
from runner.storage.exported import open_exported
from runner.world.hook_ranks import HookRanks
from runner.world.seeds import mix, report_nondeterminism, seed_all

logger = logging.getLogger(__name__)
INFERENCE_SEED = 3
"""Separates the seed of random numbers in forwards from other seeds derived from run.seed."""


Replacement = Callable[[HookRanks], Call | None]
"""Given the ranks that hooks may ask for, what is called in place of the loss hook; None = the loss hook."""


def keep(ranks: HookRanks) -> None:
    """Call the loss hook."""


@dataclass(frozen=True, kw_only=True)
class Inference:
    """One rank's part of a job. It has what a listener may look at in a run."""

    spec: RunSpec
    run_dir: RunDir
    world: World
    data: Data
    placed: Placed
    listeners: Listeners
    progress: Progress
    """Of the run when its checkpoint was saved."""
    trackers: Trackers

    @property
    def trainable(self) -> Trainable:
        """The placed model, for listeners: nothing of it may be trained here."""
        return cast("Trainable", self.placed)

    @property
    def eval_prefixes(self) -> list[str]:
        """What the metrics of each evaluation set are called before the last slash."""
        return prefixes(self.data, self.spec)

    def around(self) -> AbstractContextManager[None]:
        """The context of an evaluation in the run: an average of the weights takes their place, for example."""
        return self.listeners.around_eval(self)


@contextmanager
def open_inference(
    spec: RunSpec, task: Task, run_dir: RunDir, world: World, *, call: Replacement = keep
) -> Iterator[Inference]:
    """Build and restore everything. Collective.

    Args:
        run_dir: of the job.
        call: says what is called in place of the loss hook.

    Raises:
        HookError, ModelError, DataError: a hook returned something that cannot be used.
        CheckpointError: the weights are damaged, or those of another model.
    """
    ranks, data = open_data(replace(spec, eval=replace(spec.eval, every_steps=None)), world)
    loads = task.checkpoint is not None or task.weights is not None
    placed = place(spec, ranks, world, call=call(ranks), restores=loads)
    listeners = build_listeners(spec.callback, ranks)
    progress = _restore(task, placed, listeners, world)
    seed_all(mix(spec.run.seed, INFERENCE_SEED, world.along(*world.axes.random).rank))
    with report_nondeterminism():
        yield Inference(
            spec=spec,
            run_dir=run_dir,
            world=world,
            data=data,
            placed=placed,
            listeners=listeners,
            progress=progress,
            trackers=NoTrackers(),
        )


def _restore(task: Task, placed: Placed, listeners: Listeners, world: World) -> Progress:
    """Load the task's weights, and what callbacks have in the same checkpoint."""
    if task.weights is not None:
        placed.load_state_dict(open_exported(Path(task.weights), world))
    if task.checkpoint is None:
        return Progress(step=0, position=0)
    path = Path(task.checkpoint)
    reader = _Reader(Checkpoints(path.parent, world).open(path), listeners, cast("Trainable", placed))
    placed.load_state_dict(reader)
    listeners.load_state_dict(reader.values["callbacks"])
    step = int(reader.values["step"])
    logger.info("weights after step %d from %s", step, path)
    return Progress(step=step, position=0)


class _Reader:
    """A checkpoint for a placed model to read; callbacks' tensors are read in the same pass."""

    def __init__(self, saved: SavedState, listeners: Listeners, trainable: Trainable) -> None:
        self._saved = saved
        self.path = saved.path
        self.stored = saved.stored
        live = listeners.tensors(trainable)
        self._callbacks = {name: tensors for name, tensors in live.items() if name in self.stored.callbacks}
        self.values: dict[str, Any] = {}

    def read(self, state: State[Tensor]) -> None:
        """Load the model's tensors and those of callbacks. Collective."""
        state.callbacks |= self._callbacks
        self._saved.read(state)
        self.values = dict(state.values)
