"""The typed state of a run as the flat names of a checkpoint's files, and back. Nothing else knows these names.

model.<parameter>                   of the model of a run that has one; of others <model>.model.<parameter>
optimizer.<parameter>.<key>         what the optimizer keeps for that parameter; of others <model>.optimizer.…
callback.<name>.<key>               dots in the name are written as %2E
rng.rank_<n>.<generator>
"""

from collections.abc import Iterator, Mapping
from typing import TypeVar
from urllib.parse import unquote

from runner.protocols import State
from runner.protocols.state import MODEL

T = TypeVar("T")

RANK = "rank_"


def to_names(state: State[T]) -> dict[str, T]:
    """Every tensor of the state by its name in a file."""
    return dict(_names(state))


def from_names(tensors: Mapping[str, T]) -> State[T]:
    """What `to_names` was made of; names that it would not give are left out."""
    state: State[T] = State()
    for name, tensor in tensors.items():
        _put(state, name, tensor)
    return state


def _names(state: State[T]) -> Iterator[tuple[str, T]]:
    for model, tensors in state.models.items():
        yield from ((f"{_owner(model)}model.{name}", tensor) for name, tensor in tensors.items())
    for model, parameters in state.optimizers.items():
        for parameter, slots in parameters.items():
            yield from ((f"{_owner(model)}optimizer.{parameter}.{key}", tensor) for key, tensor in slots.items())
    for callback, tensors in state.callbacks.items():
        owner = callback.replace("%", "%25").replace(".", "%2E")
        yield from ((f"callback.{owner}.{key}", tensor) for key, tensor in tensors.items())
    for rank, generators in state.rng.items():
        yield from ((f"rng.{RANK}{rank}.{name}", tensor) for name, tensor in generators.items())


def _owner(model: str) -> str:
    return "" if model == MODEL else f"{model}."


def _put(state: State[T], name: str, tensor: T) -> None:
    kind, _, rest = name.partition(".")
    model = MODEL
    if kind not in ("model", "optimizer", "callback", "rng"):
        model, (kind, _, rest) = kind, rest.partition(".")
    first, _, last = rest.partition(".")
    if kind == "model":
        state.models.setdefault(model, {})[rest] = tensor
    elif kind == "optimizer":
        parameter, _, key = rest.rpartition(".")
        state.optimizers.setdefault(model, {}).setdefault(parameter, {})[key] = tensor
    elif kind == "callback":
        state.callbacks.setdefault(unquote(first), {})[last] = tensor
    elif kind == "rng":
        state.rng.setdefault(int(first.removeprefix(RANK)), {})[last] = tensor
