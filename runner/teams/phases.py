"""Phases, in which a step trains models in turns, and the updates that they are made of."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from runner.model.named import Call
from runner.protocols import StepBatches, Trainable


class Phase(NamedTuple):
    """One of those in which a step trains models in turns."""

    name: str
    call: Call
    """Its loss hook."""
    team: int
    """The number of the team that it updates."""
    rounds: int


class Turn(NamedTuple):
    """One update of a step."""

    phase: str
    """Empty in a run without phases."""
    trainable: Trainable
    batches: StepBatches


Turns = Callable[[StepBatches], Iterator[Turn]]
"""The updates of a step, given its items."""
