"""The typed state of a run as the flat names of a checkpoint's files, and back. Nothing else knows these names.

    model.<parameter>               a parameter or persistent buffer
    optimizer.<parameter>.<key>     what the optimizer keeps for that parameter: exp_avg, …
    callback.<name>.<key>
    rng.rank_<n>.<generator>
    replica_<n>.<name>              one of the names above, of what only this replica holds

These are the names of a run with one model, which is called `model`. The names of any other model are prefixed with its
own: `<model>.model.<parameter>`, `<model>.optimizer.<parameter>.<key>`. The names of models and callbacks and the keys
of optimizers are quoted: a dot becomes %2E and a percent sign %25. All other names keep their dots.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar
from urllib.parse import unquote

from runner.protocols import State
from runner.protocols.state import MODEL
from runner.storage.fields import shown

T = TypeVar("T")

KINDS = ("model", "optimizer", "callback", "rng")
RANK = "rank_"
REPLICA = "replica_"
NUMBER = "[0-9]{1,18}"


def to_names(state: State[T]) -> dict[str, T]:
    """Every tensor of the state by its name in a file."""
    return dict(_names(state))


def from_names(tensors: Mapping[str, T]) -> State[T]:
    """The state whose tensors have these names in a file; the inverse of `to_names`, with empty values.

    Raises:
        ValueError: a name is none that `to_names` gives.
    """
    state: State[T] = State()
    for name, tensor in tensors.items():
        _put(state, name, tensor)
    if odd := tensors.keys() ^ to_names(state).keys():  # a number or a quotation that `to_names` would write otherwise
        raise ValueError(f"{shown(min(odd))} is not the name of a tensor in a checkpoint.")
    return state


def names_in_files(state: State[T], chosen: Mapping[str, Collection[str]]) -> set[str]:
    """The names that tensors of the models have in a file, those of each replica included.

    Args:
        chosen: by model, the names of its tensors.
    """
    names = {f"{_prefix(model)}model.{name}" for model, names in chosen.items() for name in names}
    return names.union(*({f"{REPLICA}{number}.{name}" for name in names} for number in state.replicas))


def _names(state: State[T]) -> Iterator[tuple[str, T]]:
    for model, tensors in state.models.items():
        yield from ((f"{_prefix(model)}model.{name}", tensor) for name, tensor in tensors.items())
    for model, parameters in state.optimizers.items():
        prefix = f"{_prefix(model)}optimizer"
        for parameter, slots in parameters.items():
            yield from ((f"{prefix}.{parameter}.{_quote(key)}", tensor) for key, tensor in slots.items())
    for callback, tensors in state.callbacks.items():
        yield from ((f"callback.{_quote(callback)}.{key}", tensor) for key, tensor in tensors.items())
    for rank, generators in state.rng.items():
        yield from ((f"rng.{RANK}{rank}.{name}", tensor) for name, tensor in generators.items())
    for number, replica in state.replicas.items():
        yield from ((f"{REPLICA}{number}.{name}", tensor) for name, tensor in _names(replica))


def _prefix(model: str) -> str:
    if model == MODEL:
        return ""
    if model in KINDS or _is_replica(model):  # from_names would take it for that, so quote its first letter as well
        return f"%{ord(model[0]):02X}{model[1:]}."
    return f"{_quote(model)}."


def _is_replica(name: str) -> bool:
    return re.fullmatch(REPLICA + NUMBER, name) is not None


def _quote(name: str) -> str:
    return name.replace("%", "%25").replace(".", "%2E")


def _put(state: State[T], name: str, tensor: T) -> None:
    kind, dot, rest = name.partition(".")
    if _is_replica(kind) and not _is_replica(rest.partition(".")[0]):
        _put(state.replicas.setdefault(int(kind.removeprefix(REPLICA)), State()), rest, tensor)
        return
    model = MODEL
    if kind not in KINDS:
        model, (kind, dot, rest) = unquote(kind), rest.partition(".")
    first, inner_dot, last = rest.partition(".")
    if kind == "model" and dot:
        state.models.setdefault(model, {})[rest] = tensor
    elif kind == "optimizer" and inner_dot:
        parameter, _, key = rest.rpartition(".")
        state.optimizers.setdefault(model, {}).setdefault(parameter, {})[unquote(key)] = tensor
    elif kind == "callback" and inner_dot and model == MODEL:
        state.callbacks.setdefault(unquote(first), {})[last] = tensor
    elif kind == "rng" and inner_dot and model == MODEL and re.fullmatch(RANK + NUMBER, first):
        state.rng.setdefault(int(first.removeprefix(RANK)), {})[last] = tensor
    else:
        raise ValueError(f"{shown(name)} is not the name of a tensor in a checkpoint.")
