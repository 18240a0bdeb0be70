"""Everything of a run that a checkpoint contains: built from a spec, or restored from a checkpoint."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from runner.engine.listeners import Listeners
from runner.engine.replicas import ReplicaReader, divide_by_replica
from runner.errors import CheckpointError
from runner.protocols import Progress, SavedState, Scheduler, Source, State, StepsAtOnce, Trainable, World
from runner.protocols.state import of_model
from runner.teams.phases import Turns
from runner.world.seeds import load_rng_state, mix, rng_state, seed_all


@dataclass(kw_only=True)
class Training:
    """What one rank trains, and its progress."""

    trainable: Trainable
    schedules: Mapping[str, Scheduler]
    """By the name of the model whose optimizer each one schedules."""
    source: Source
    listeners: Listeners
    turns: Turns | None = None
    """The updates of a step, in a run with phases."""
    random_world: World
    """The ranks that draw different random numbers."""
    seed: int
    step: int = 0
    """Optimizer steps completed."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The latest value of each metric."""
    time_before_s: float = 0.0
    """Seconds of training in previous attempts."""
    started: float = field(default_factory=time.monotonic)
    at_once: StepsAtOnce | None = field(init=False)
    """The trainable, if it takes whole steps in one call."""

    def __post_init__(self) -> None:
        self.at_once = self.trainable if isinstance(self.trainable, StepsAtOnce) else None

    @property
    def progress(self) -> Progress:
        """Step and position in the data."""
        return Progress(step=self.step, position=self.source.position)

    @property
    def time_s(self) -> float:
        """Seconds of training since the run began."""
        return self.time_before_s + time.monotonic() - self.started

    @property
    def replicas(self) -> World:
        """The ranks that take steps of their own; only this one under most strategies."""
        return self.random_world.along(*self.random_world.axes.independent)

    def advance(self) -> None:
        """Count an optimizer step and advance the schedules."""
        for schedule in self.schedules.values():
            schedule.step()
        self.step += 1

    def forget(self) -> None:
        """Free models and optimizers to make room for others. The training cannot be used afterwards."""
        del self.trainable, self.schedules, self.turns, self.at_once

    def state_dict(self) -> State[Tensor]:
        """Models, optimizers, schedules, position, callbacks, and the generators of this rank. Collective."""
        state = self.trainable.state_dict()
        state.callbacks |= self.listeners.tensors(self.trainable)
        for name, model in self.trainable.models.items():
            trained = {parameter: one.requires_grad for parameter, one in model.named_parameters()}
            state.frozen[name] = {parameter for parameter, is_trained in trained.items() if not is_trained}
            state.buffers[name] = state.models.get(name, {}).keys() - trained.keys()
        divide_by_replica(state, self.replicas, models=self.trainable.models.keys())
        state.rng[self.random_world.rank] = rng_state(self.random_world.device)
        state.values |= {
            "step": self.step,
            "source": self.source.state_dict(),
            "time_s": self.time_s,
            "metrics": self.metrics,
            "callbacks": self.listeners.state_dict(),
            **{of_model(model, "schedule"): one.state_dict() for model, one in self.schedules.items()},
        }
        return state

    def load_state_dict(self, saved: SavedState) -> None:
        """Restore a committed checkpoint, written by any strategy and number of ranks. Collective.

        Raises:
            CheckpointError: it is corrupted or belongs to another model.
        """
        reader = _CheckpointReader(saved, self)
        with _restoring(saved, "model and optimizer"):
            self.trainable.load_state_dict(reader)
        values = reader.values
        with _restoring(saved, "progress"):
            self.step = _count(values["step"])
            self.time_before_s = float(values["time_s"])
            self.metrics = dict(values["metrics"])
        with _restoring(saved, "source"):
            self.source.load_state_dict(values["source"])
            _count(self.source.position)
        for model, schedule in self.schedules.items():
            with _restoring(saved, of_model(model, "schedule")):
                schedule.load_state_dict(values[of_model(model, "schedule")])
        with _restoring(saved, "callbacks"):
            self.listeners.load_state_dict(values["callbacks"])
        if reader.rng:
            with _restoring(saved, "random number generators"):
                try:
                    load_rng_state(reader.rng, self.random_world.device)
                except RuntimeError as error:  # torch's, of a state that is none
                    raise ValueError(str(error)) from error
        else:  # more ranks than wrote it: the additional ones get a seed of their own
            seed_all(mix(self.seed, self.random_world.rank, self.step))


@contextmanager
def _restoring(saved: SavedState, what: str) -> Iterator[None]:
    """Say of a saved state that its owner cannot take which one it is. The owner's own error stays the cause."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        rule = "Change back what you changed since, or use the version of runner that wrote it: see provenance.json."
        raise CheckpointError(
            f"{saved.path}: the state of {what} cannot be restored: {type(error).__name__}: {error}. {rule}"
        ) from error


def _count(value: object) -> int:
    """The value, which must be a number of steps or items."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.80} is not a whole number from 0")
    return value


class _CheckpointReader:
    """A checkpoint for the trainable to read; callbacks and generators are read in the same pass."""

    def __init__(self, saved: SavedState, training: Training) -> None:
        self._saved = ReplicaReader(saved, training.replicas)
        self._rank = training.random_world.rank
        self.path = saved.path
        self.stored = self._saved.stored
        generators = self.stored.rng.get(self._rank, {})
        self.rng = {name: torch.empty(one.shape, dtype=one.dtype) for name, one in generators.items()}
        # A callback that is not in the checkpoint starts fresh.
        live = training.listeners.tensors(training.trainable)
        self._callbacks = {name: tensors for name, tensors in live.items() if name in self.stored.callbacks}
        self.values: dict[str, Any] = {}

    def read(self, state: State[Tensor]) -> None:
        """Load the state, the callbacks' tensors and the generators. Collective."""
        state.callbacks |= self._callbacks
        if self.rng:
            state.rng[self._rank] = self.rng
        self._saved.read(state)
        self.values = dict(state.values)
