"""Model and optimizer under DeepSpeed by the model's own names: each rank reads and writes its own partition. Law 6.

The names and values are those of every other strategy. The weights are those that the optimizer updates: float32
but under a precision that keeps narrow ones.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.nn import Module

from runner.errors import CheckpointError
from runner.protocols import State, StoredTensor
from runner.strategy.common.named_state import MODEL, OPTIMIZER, settings
from runner.strategy.deepspeed.flat_range import FlatRange
from runner.strategy.deepspeed.partitions import Partition, Partitions, frozen


class _Slot(NamedTuple):
    """A piece of optimizer state in a checkpoint."""

    parameter: str
    key: str
    stored: StoredTensor

    @property
    def name(self) -> str:
        return f"{OPTIMIZER}{self.parameter}.{self.key}"


@final
class NamedPartitions:
    """A model and its optimizer, cut by DeepSpeed."""

    def __init__(self, model: Module, optimizer: torch.optim.Optimizer, partitions: Partitions, *, rank: int) -> None:
        self._model = model
        self._optimizer = optimizer
        self._partitions = partitions
        self._rank = rank
        self._built_groups = settings(optimizer)

    def state(self) -> State:
        """This rank's part of everything; nothing is copied or gathered."""
        state = State(tensors=dict(self._model_tensors()))
        numbers: dict[str, dict[str, Any]] = {}
        for name, partition in sorted(self._partitions.items(), key=lambda item: item[1].group):
            with self._partitions.resident(partition.group):  # away from memory, a tensor has another shape
                self._take(state, numbers, name, partition)
        groups = settings(self._optimizer)
        state.values["optimizer"] = {"numbers": numbers, "groups": groups, "built_groups": self._built_groups}
        return state

    def load(self, read: Callable[[State], None], stored: Mapping[str, StoredTensor]) -> None:
        """Fill this rank's part in place, then the weights that the forward sees.

        Raises:
            CheckpointError: it is of another model, or of an optimizer that cannot be cut.
        """
        state = State(tensors=dict(self._model_tensors()))
        _check_same_model(state.tensors, stored)
        slots = self._slots(stored)
        _check_slots(slots, self._partitions)
        swapped: dict[int, dict[str, Tensor]] = {}
        for name, partition in self._partitions.items():
            if partition.is_swapped:
                swapped.setdefault(partition.group, {})[MODEL + name] = state.tensors.pop(MODEL + name)
        counts: dict[_Slot, Tensor] = {}
        for slot in slots:
            partition = self._partitions[slot.parameter]
            if slot.stored.shape != partition.shape or (not partition.shape and slot.key == "step"):
                counts[slot] = state.tensors[slot.name] = torch.empty(slot.stored.shape, dtype=slot.stored.dtype)
                continue
            self._make_room(partition, slot.key)
            piece = self._range(partition, slot.key, partition.owner.dtype)
            into = swapped.setdefault(partition.group, {}) if partition.is_swapped else state.tensors
            into[slot.name] = piece
        read(state)
        self._take_values(state.values["optimizer"], counts)
        for group, tensors in swapped.items():
            with self._partitions.resident(group, write=True):
                read(State(tensors=dict(tensors)))
        self._partitions.refresh()

    def _model_tensors(self) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for name, value in self._model.state_dict(keep_vars=True).items():
            if not isinstance(value, Tensor):
                raise CheckpointError(
                    f"model.{name} is a {type(value).__name__}: a checkpoint holds tensors only. "
                    "Register it as a buffer, or leave it out of state_dict."
                )
            if id(value) in seen:
                continue
            seen.add(id(value))
            if name in self._partitions:
                yield MODEL + name, self._range(self._partitions[name], None, self._partitions[name].owner.dtype)
            else:
                yield MODEL + name, frozen(value, rank=self._rank)

    def _range(self, partition: Partition, key: str | None, dtype: torch.dtype) -> FlatRange:
        """The partition's weights (no key) or a piece of its state, brought to memory when it is asked for."""

        def elements() -> Tensor:
            leaves = (
                partition.is_swapped and self._partitions.holds != partition.group
            )  # its memory is another's after the block
            with self._partitions.resident(partition.group):
                whole = partition.owner if key is None else self._optimizer.state[partition.owner][key]
                found = whole.detach().narrow(0, partition.at, partition.length)
                return found.clone() if leaves else found

        return FlatRange(elements, shape=partition.shape, start=partition.start, length=partition.length, dtype=dtype)

    def _take(self, state: State, numbers: dict[str, dict[str, Any]], name: str, partition: Partition) -> None:
        for key, value in self._optimizer.state.get(partition.owner, {}).items():
            if isinstance(value, Tensor) and value.shape == partition.owner_shape:
                state.tensors[f"{OPTIMIZER}{name}.{key}"] = self._range(partition, key, value.dtype)
            elif isinstance(value, Tensor) or key == "step":  # a count is a tensor in torch, a number in DeepSpeed
                state.tensors[f"{OPTIMIZER}{name}.{key}"] = torch.as_tensor(value, dtype=torch.float32).clone()
            else:
                numbers.setdefault(name, {})[key] = value

    def _make_room(self, partition: Partition, key: str) -> None:
        """What DeepSpeed's optimizer would make in its first step."""
        with self._partitions.resident(partition.group, write=True):
            kept = self._optimizer.state[partition.owner]
            if key not in kept:
                kept[key] = torch.zeros_like(partition.owner, requires_grad=False)

    def _slots(self, stored: Mapping[str, StoredTensor]) -> list[_Slot]:
        found = []
        for name, one in stored.items():
            parameter, _, key = name.removeprefix(OPTIMIZER).rpartition(".")
            if name.startswith(OPTIMIZER) and parameter in self._partitions:
                found.append(_Slot(parameter, key, one))
        return found

    def _take_values(self, kept: Mapping[str, Any], counts: Mapping[_Slot, Tensor]) -> None:
        """Counts and settings, of which DeepSpeed keeps one for each flat partition."""
        said: dict[tuple[int, str], dict[str, Any]] = {}
        for slot, value in counts.items():
            said.setdefault((self._partitions[slot.parameter].group, slot.key), {})[slot.parameter] = value
        for parameter, numbers in kept["numbers"].items():
            for key, number in numbers.items():
                said.setdefault((self._partitions[parameter].group, key), {})[parameter] = number
        for (_, key), values in said.items():
            (parameter, value), *others = values.items()
            if unlike := [name for name, other in others if other != value]:
                raise CheckpointError(
                    f"optimizer.{unlike[0]}.{key} differs from optimizer.{parameter}.{key} in the checkpoint, but "
                    "DeepSpeed keeps one for all parameters of a group. Continue with the strategy that wrote it."
                )
            owner = self._partitions[parameter].owner
            own = type(self._optimizer).__module__.startswith("deepspeed.")
            self._optimizer.state[owner][key] = int(value) if own and key == "step" else value
        if len(kept["groups"]) == len(self._built_groups):
            rows = zip(
                self._optimizer.param_groups, kept["built_groups"], self._built_groups, kept["groups"], strict=True
            )
            for group, old_built, built, now in rows:
                group.update({key: value for key, value in now.items() if old_built.get(key) == built.get(key)})


def _check_same_model(wanted: Mapping[str, Tensor], stored: Mapping[str, StoredTensor]) -> None:
    held = {name: one for name, one in stored.items() if name.startswith(MODEL)}
    problems = [f"missing in the checkpoint: {name}" for name in wanted.keys() - held.keys()]
    problems += [f"unexpected in the checkpoint: {name}" for name in held.keys() - wanted.keys()]
    problems += [
        f"misshapen: {name} is {list(held[name].shape)} in the checkpoint, {list(tensor.shape)} in the model"
        for name, tensor in wanted.items()
        if name in held and held[name].shape != tuple(tensor.shape)
    ]
    if problems:
        raise CheckpointError("the checkpoint is of another model:\n  " + "\n  ".join(sorted(problems)))


def _check_slots(slots: list[_Slot], partitions: Partitions) -> None:
    odd = [slot for slot in slots if slot.stored.shape and slot.stored.shape != partitions[slot.parameter].shape]
    if odd:
        named = ", ".join(f"{slot.name} {list(slot.stored.shape)}" for slot in odd)
        raise CheckpointError(
            f"DeepSpeed cuts optimizer state element by element, but some of the checkpoint's has another shape than "
            f"its parameter: {named}. Continue with the strategy that wrote it, or with strategy=ddp."
        )
