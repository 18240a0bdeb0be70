"""What goes into a checkpoint beside model and optimizer: small, by name, the same on every rank."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from runner.protocols import State


class Stateful(Protocol):
    """Something of a strategy that goes into checkpoints."""

    def state(self) -> dict[str, Any]:
        """What JSON can say; the same on every rank."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from there; from {} begin afresh."""
        ...


def state_dicts(kept: Mapping[str, Stateful]) -> dict[str, dict[str, Any]]:
    """What each says."""
    return {name: part.state() for name, part in kept.items()}


def with_stateful(read: Callable[[State], None], kept: Mapping[str, Stateful]) -> Callable[[State], None]:
    """Read, and give each its own back; {} to what the checkpoint does not know."""

    def read_all(state: State) -> None:
        read(state)
        for name, part in kept.items():
            part.load_state(state.values.get(name, {}))

    return read_all
