"""The models of a run: the hook of each, and what several of them do not share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.protocols import Optimizer, Precision, Schedule, Strategy

__all__ = ["OWN", "Hook", "NamedModel", "TrainingPhase", "teams"]

OWN = ("strategy", "precision", "optimizer", "schedule")
"""The groups of which each of several models may have an option of its own."""


@dataclass(frozen=True, kw_only=True)
class Hook:
    """One of the user's functions, and its arguments in the recipe. `config/hooks.py` finds it."""

    target: str
    """Dotted path of a callable: user_hooks.digits.build_model."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments; a nested mapping with a `_target_` of its own is built first."""


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """One of several models, with its parts: the run's, where it has none of its own."""

    model: Hook
    frozen: bool
    """Whether its weights stay as they are."""
    strategy: Strategy
    precision: Precision
    optimizer: Optimizer
    schedule: Schedule


@dataclass(frozen=True, kw_only=True)
class TrainingPhase:
    """One of the phases in which a step trains several models in turns."""

    loss: Hook
    updates: tuple[str, ...]
    """The models that it updates."""
    rounds: int
    """Updates in one step, each with items of its own."""


def teams(models: Mapping[str, NamedModel], phases: Mapping[str, TrainingPhase]) -> list[tuple[str, ...]]:
    """The models that are updated together, in the order of the phases; without phases all that are not frozen."""
    if not phases:
        return [tuple(name for name, one in models.items() if not one.frozen)]
    updated = [tuple(name for name in models if name in phase.updates) for phase in phases.values()]
    return list(dict.fromkeys(updated))
