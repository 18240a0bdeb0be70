"""What goes into a checkpoint's values beside models and optimizers: small, by name, the same on every rank."""

from collections.abc import Mapping
from typing import Any

from runner.protocols import Stateful

NO_STATE: Mapping[str, Stateful] = {}


def state_dicts(parts: Mapping[str, Stateful]) -> dict[str, dict[str, Any]]:
    """The state of each part, by its name."""
    return {name: part.state_dict() for name, part in parts.items()}


def load_state_dicts(parts: Mapping[str, Stateful], values: Mapping[str, Any]) -> None:
    """Give each part its state back; an empty one to a part that the checkpoint does not know."""
    for name, part in parts.items():
        part.load_state_dict(values.get(name, {}))
