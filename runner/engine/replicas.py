"""What is common to replicas that take steps of their own, and what each holds for itself.

Between two exchanges their weights differ. A checkpoint has the mean of the weights and of callbacks' tensors under the
usual names, so that any strategy can evaluate, export and resume it (law 6); and what each replica holds, so that the
same number of replicas continues bit by bit. What the usual names say of the optimizer is replica 0's: a mean would
take memory and traffic of its own at every save.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from runner.model.local_part import local_part
from runner.protocols import SavedState, State, StoredTensor, Trainable, World
from runner.world.exchange import mean_over

T = TypeVar("T")


def divide_by_replica(state: State[Tensor], replicas: World, *, models: Collection[str]) -> None:
    """Move what this replica holds for itself out of the state, and put what replicas have in common there. Collective.

    Args:
        state: of this rank, with live tensors; afterwards it has copies, too.
        replicas: the ranks that hold the same parts of the model.
        models: names of the models that replicas train, whose weights differ.
    """
    if replicas.size == 1:
        return
    own: State[Tensor] = State(models=_taken(state.models, models), callbacks=dict(state.callbacks))
    copies = {model: _copies(tensors) for model, tensors in own.models.items()}
    averages = {callback: _copies(tensors) for callback, tensors in own.callbacks.items()}
    _average(replicas, [*_tensors(copies), *_tensors(averages)])
    state.models |= copies
    state.callbacks |= averages
    if not replicas.is_main:
        own.optimizers = _taken(state.optimizers, models)
        for model in own.optimizers:
            del state.optimizers[model]
    state.replicas[replicas.rank] = own


@contextmanager
def mean_weights(trainable: Trainable, replicas: World) -> Iterator[None]:
    """The models have the mean of all replicas' weights in the block; afterwards their own, bit for bit. Collective."""
    if replicas.size == 1:
        yield
        return
    live = [local_part(tensor) for tensor in _tensors(trainable.state_dict().models)]
    own = [tensor.clone() for tensor in live]
    _average(replicas, live)
    try:
        yield
    finally:
        torch._foreach_copy_(live, own)


@final
class ReplicaReader:
    """A checkpoint as one replica reads it: its own part if as many replicas wrote it, else what they had in common."""

    def __init__(self, saved: SavedState, replicas: World) -> None:
        self._saved = saved
        self._number = replicas.rank
        of_replicas = saved.stored.replicas
        alike = replicas.size > 1 and of_replicas.keys() == {*range(replicas.size)}
        self._own: State[StoredTensor] = of_replicas[replicas.rank] if alike else State()
        self.path = saved.path
        self.stored = replace(
            saved.stored,
            models={**saved.stored.models, **self._own.models},
            optimizers={**saved.stored.optimizers, **self._own.optimizers},
            callbacks={**saved.stored.callbacks, **self._own.callbacks},
            replicas={},
        )

    def read(self, state: State[Tensor]) -> None:
        """Load the state, each tensor from where this replica has it. Collective."""
        own: State[Tensor] = State(
            models=_taken(state.models, self._own.models),
            optimizers=_taken(state.optimizers, self._own.optimizers),
            callbacks=_taken(state.callbacks, self._own.callbacks),
        )
        common: State[Tensor] = State(
            models=_without(state.models, own.models),
            optimizers=_without(state.optimizers, own.optimizers),
            callbacks=_without(state.callbacks, own.callbacks),
            rng=state.rng,
            replicas={self._number: own},
        )
        self._saved.read(common)
        state.values.clear()
        state.values.update(common.values)


def _average(replicas: World, tensors: Iterable[Tensor]) -> None:
    """In float64, so that the mean of what is equal (frozen weights, or all after an exchange) is exactly that."""
    mean_over(replicas, [local_part(tensor) for tensor in tensors], dtype=torch.float64)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _tensors(owners: Mapping[str, Mapping[str, Tensor]]) -> list[Tensor]:
    return [tensor for tensors in owners.values() for tensor in tensors.values()]


def _taken(owners: Mapping[str, T], names: Collection[str] | Mapping[str, Any]) -> dict[str, T]:
    return {name: owned for name, owned in owners.items() if name in names}


def _without(owners: Mapping[str, T], names: Collection[str] | Mapping[str, Any]) -> dict[str, T]:
    return {name: owned for name, owned in owners.items() if name not in names}
