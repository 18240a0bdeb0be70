"""The whole state of a run: gathered for a checkpoint, and put back from one."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.engine.session import Session
from runner.protocols import State
from runner.world.seeds import load_rng_state, mix, rng_state, seed_all


def whole_state(session: Session) -> State:
    """Model, optimizer, schedule, position, callbacks, and the generators of this rank."""
    state = session.trainable.state()
    state.tensors |= callback_tensors(session) | rng_state(session.world)
    state.values |= {
        "step": session.step,
        "position": session.stream.position,
        "time_s": session.time_s,
        "metrics": session.metrics,
        "schedule": session.schedule.state_dict(),
        "callbacks": session.listeners.state_dict(),
    }
    return state


def callback_tensors(session: Session) -> dict[str, Tensor]:
    """What callbacks keep, by the names of a checkpoint."""
    return {
        f"callback.{name}.{key}": tensor
        for name, tensors in session.listeners.tensors(session.trainable).items()
        for key, tensor in tensors.items()
    }


def restore(session: Session, checkpoint: Path) -> None:
    """Continue from a committed checkpoint, whatever strategy and number of ranks wrote it. Collective.

    Raises:
        CheckpointError: it is corrupted or of another model; nothing was trained yet.
    """
    stored = session.checkpointer.stored(checkpoint)
    mine = f"rng.rank_{session.world.rank}."
    generators = {name: found for name, found in stored.items() if name.startswith(mine)}
    rng = {name: torch.empty(found.shape, dtype=found.dtype) for name, found in generators.items()}
    # A callback that the checkpoint does not know begins afresh.
    known = {name.split(".")[1] for name in stored if name.startswith("callback.")}
    kept = {name: tensor for name, tensor in callback_tensors(session).items() if name.split(".")[1] in known}
    values: dict[str, Any] = {}

    def read(state: State) -> None:
        state.tensors |= rng | kept
        session.checkpointer.load(checkpoint, state)
        values.update(state.values)

    session.trainable.load_state(read, stored)
    session.step = values["step"]
    session.stream.position = values["position"]
    session.time_before_s = values["time_s"]
    session.metrics = values["metrics"]
    session.throughput.restart(session.stream.position)
    session.schedule.load_state_dict(values["schedule"])
    session.listeners.load_state_dict(values["callbacks"])
    if rng:
        load_rng_state(rng, session.world)
    else:  # more ranks than wrote it: the new ones draw from a seed of their own
        seed_all(mix(session.spec.run.seed, session.world.rank, session.step))
