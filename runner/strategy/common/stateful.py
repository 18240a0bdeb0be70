"""State for a checkpoint's values besides models and optimizers: small, by name, the same on every rank."""

from collections.abc import Mapping
from typing import Any

from runner.protocols import Stateful

NO_STATE: Mapping[str, Stateful] = {}


def state_dicts(parts: Mapping[str, Stateful]) -> dict[str, dict[str, Any]]:
    """The state of each part, by its name."""
    return {name: part.state_dict() for name, part in parts.items()}


def load_state_dicts(parts: Mapping[str, Stateful], values: Mapping[str, Any]) -> None:
    """Load the state of each part; a part that is not in the checkpoint gets an empty state."""
    for name, part in parts.items():
        part.load_state_dict(values.get(name, {}))
