"""Model and optimizer under DeepSpeed by the model's own names: each rank reads and writes its own partition. Law 6.

The names and values are those of every other strategy. The weights are those that the optimizer updates: float32
but under a precision that keeps narrow ones.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.nn import Module

from runner.errors import CheckpointError
from runner.protocols import SavedState, State, StoredTensor
from runner.protocols.state import MODEL
from runner.strategy.common.named_state import (
    OptimizerTensors,
    check_same_model,
    distinct_tensors,
    keep_changed_settings,
    settings,
)
from runner.strategy.deepspeed.flat_range import FlatRange
from runner.strategy.deepspeed.partitions import Partition, Partitions, frozen


class _Slot(NamedTuple):
    """A piece of optimizer state in a checkpoint."""

    parameter: str
    key: str
    stored: StoredTensor

    def __str__(self) -> str:
        return f"optimizer.{self.parameter}.{self.key}"


@final
class NamedPartitions:
    """A model and its optimizer, cut by DeepSpeed."""

    def __init__(self, model: Module, optimizer: torch.optim.Optimizer, partitions: Partitions, *, rank: int) -> None:
        self._model = model
        self._optimizer = optimizer
        self._partitions = partitions
        self._rank = rank
        self._built_groups = settings(optimizer)

    def state_dict(self) -> State[Tensor]:
        """This rank's part of everything; nothing is copied or gathered."""
        state: State[Tensor] = State(models={MODEL: self._model_tensors()}, optimizers={MODEL: {}})
        numbers: dict[str, dict[str, Any]] = {}
        for name, partition in sorted(self._partitions.items(), key=lambda item: item[1].group):
            with self._partitions.resident(partition.group):  # away from memory, a tensor has another shape
                self._take(state.optimizers[MODEL], numbers, name, partition)
        groups = settings(self._optimizer)
        state.values["optimizer"] = {"numbers": numbers, "groups": groups, "built_groups": self._built_groups}
        return state

    def load(self, saved: SavedState) -> dict[str, Any]:
        """Fill this rank's part in place, then the weights that the forward sees.

        Returns:
            The values of the checkpoint.

        Raises:
            CheckpointError: it is of another model, or of an optimizer that cannot be partitioned.
        """
        state: State[Tensor] = State(models={MODEL: self._model_tensors()}, optimizers={MODEL: {}})
        check_same_model(state.models[MODEL], saved.stored.models.get(MODEL, {}))
        slots = self._slots(saved.stored.optimizers.get(MODEL, {}))
        _check_slots(slots, self._partitions)
        swapped: dict[int, State[Tensor]] = {}
        for name, partition in self._partitions.items():
            if partition.is_swapped:
                into = swapped.setdefault(partition.group, State(models={MODEL: {}}, optimizers={MODEL: {}}))
                into.models[MODEL][name] = state.models[MODEL].pop(name)
        counts: dict[_Slot, Tensor] = {}
        for slot in slots:
            partition = self._partitions[slot.parameter]
            into = swapped[partition.group] if partition.is_swapped else state
            if slot.stored.shape != partition.shape or (not partition.shape and slot.key == "step"):
                piece = counts[slot] = torch.empty(slot.stored.shape, dtype=slot.stored.dtype)
                into = state
            else:
                self._make_room(partition, slot.key)
                piece = self._range(partition, slot.key, partition.owner.dtype)
            into.optimizers[MODEL].setdefault(slot.parameter, {})[slot.key] = piece
        saved.read(state)
        self._take_values(state.values["optimizer"], counts)
        for group, away in swapped.items():
            with self._partitions.resident(group, write=True):
                saved.read(away)
        self._partitions.refresh()
        return state.values

    def _model_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, value in distinct_tensors(self._model):
            if name in self._partitions:
                tensors[name] = self._range(self._partitions[name], None, self._partitions[name].owner.dtype)
            else:
                tensors[name] = frozen(value, rank=self._rank)
        return tensors

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

    def _take(
        self, tensors: OptimizerTensors, numbers: dict[str, dict[str, Any]], name: str, partition: Partition
    ) -> None:
        for key, value in self._optimizer.state.get(partition.owner, {}).items():
            if isinstance(value, Tensor) and value.shape == partition.owner_shape:
                tensors.setdefault(name, {})[key] = self._range(partition, key, value.dtype)
            elif isinstance(value, Tensor) or key == "step":  # a count is a tensor in torch, a number in DeepSpeed
                tensors.setdefault(name, {})[key] = torch.as_tensor(value, dtype=torch.float32).clone()
            else:
                numbers.setdefault(name, {})[key] = value

    def _make_room(self, partition: Partition, key: str) -> None:
        """What DeepSpeed's optimizer would make in its first step."""
        with self._partitions.resident(partition.group, write=True):
            kept = self._optimizer.state[partition.owner]
            if key not in kept:
                kept[key] = torch.zeros_like(partition.owner, requires_grad=False)

    def _slots(self, stored: Mapping[str, Mapping[str, StoredTensor]]) -> list[_Slot]:
        known = [(name, keys) for name, keys in stored.items() if name in self._partitions]
        return [_Slot(name, key, one) for name, keys in known for key, one in keys.items()]

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
        keep_changed_settings(self._optimizer, kept, built_groups=self._built_groups)


def _check_slots(slots: list[_Slot], partitions: Partitions) -> None:
    odd = [slot for slot in slots if slot.stored.shape and slot.stored.shape != partitions[slot.parameter].shape]
    if odd:
        named = ", ".join(f"{slot} {list(slot.stored.shape)}" for slot in odd)
        raise CheckpointError(
            f"DeepSpeed cuts optimizer state element by element, but some of the checkpoint's has another shape than "
            f"its parameter: {named}. Continue with the strategy that wrote it, or with strategy=ddp."
        )
