"""Model and optimizer under DeepSpeed by the model's own names: each rank reads and writes its own partition. Law 6.

Names and values are the same as under every other strategy. The weights are those that the optimizer updates: float32,
except under a precision that keeps its weights in a narrower type.
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
    load_settings,
    settings,
)
from runner.strategy.deepspeed.flat_range import FlatRange
from runner.strategy.deepspeed.partitions import Partition, Partitions, untrained_tensor


class _Slot(NamedTuple):
    """A piece of optimizer state in a checkpoint."""

    parameter: str
    key: str
    stored: StoredTensor

    def __str__(self) -> str:
        return f"optimizer.{self.parameter}.{self.key}"


@final
class NamedPartitions:
    """A model and its optimizer, partitioned by DeepSpeed, by the model's parameter names."""

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
            with self._partitions.resident(partition.group):  # swapped out, a tensor has another shape
                self._collect(state.optimizers[MODEL], numbers, name, partition)
        groups = settings(self._optimizer)
        state.values["optimizer"] = {"numbers": numbers, "groups": groups, "built_groups": self._built_groups}
        return state

    def load(self, saved: SavedState) -> dict[str, Any]:
        """Load this rank's part in place, then update the weights that the forward uses.

        Returns:
            The values of the checkpoint.

        Raises:
            CheckpointError: it belongs to another model, or to an optimizer whose state cannot be partitioned.
        """
        state: State[Tensor] = State(models={MODEL: self._model_tensors()}, optimizers={MODEL: {}})
        check_same_model(state, saved)
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
                target = counts[slot] = torch.empty(slot.stored.shape, dtype=slot.stored.dtype)
                into = state
            else:
                self._allocate(partition, slot.key)
                target = self._range(partition, slot.key, partition.owner.dtype)
            into.optimizers[MODEL].setdefault(slot.parameter, {})[slot.key] = target
        saved.read(state)
        self._load_values(state.values["optimizer"], counts)
        for group, on_disk in swapped.items():
            with self._partitions.resident(group, write=True):
                saved.read(on_disk)
        self._partitions.refresh()
        return state.values

    def _model_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, value in distinct_tensors(self._model):
            if name in self._partitions:
                tensors[name] = self._range(self._partitions[name], None, self._partitions[name].owner.dtype)
            else:
                tensors[name] = untrained_tensor(value, rank=self._rank)
        return tensors

    def _range(self, partition: Partition, key: str | None, dtype: torch.dtype) -> FlatRange:
        """The partition's weights (no key) or a tensor of its state, loaded into memory on access."""

        def load() -> Tensor:
            # The block below swaps it out again and reuses its memory.
            swaps_out = partition.is_swapped and self._partitions.resident_group != partition.group
            with self._partitions.resident(partition.group):
                flat = partition.owner if key is None else self._optimizer.state[partition.owner][key]
                elements = flat.detach().narrow(0, partition.at, partition.length)
                return elements.clone() if swaps_out else elements

        return FlatRange(
            load,
            shape=partition.shape,
            start=partition.start,
            length=partition.length,
            dtype=dtype,
            is_swapped=partition.is_swapped,
        )

    def _collect(
        self, tensors: OptimizerTensors, numbers: dict[str, dict[str, Any]], name: str, partition: Partition
    ) -> None:
        for key, value in self._optimizer.state.get(partition.owner, {}).items():
            if isinstance(value, Tensor) and value.shape == partition.owner_shape:
                tensors.setdefault(name, {})[key] = self._range(partition, key, value.dtype)
            elif (
                isinstance(value, Tensor) or key == "step"
            ):  # the step count is a tensor in torch, a number in DeepSpeed
                tensors.setdefault(name, {})[key] = torch.as_tensor(value, dtype=torch.float32).clone()
            else:
                numbers.setdefault(name, {})[key] = value

    def _allocate(self, partition: Partition, key: str) -> None:
        """Create the state tensor that the optimizer would otherwise create in its first step."""
        with self._partitions.resident(partition.group, write=True):
            state = self._optimizer.state[partition.owner]
            if key not in state:
                state[key] = torch.zeros_like(partition.owner, requires_grad=False)

    def _slots(self, stored: Mapping[str, Mapping[str, StoredTensor]]) -> list[_Slot]:
        known = [(name, keys) for name, keys in stored.items() if name in self._partitions]
        return [_Slot(name, key, one) for name, keys in known for key, one in keys.items()]

    def _load_values(self, saved: Mapping[str, Any], counts: Mapping[_Slot, Tensor]) -> None:
        """Load counts and settings, of which DeepSpeed keeps one per flat tensor."""
        by_group: dict[tuple[int, str], dict[str, Any]] = {}
        for slot, value in counts.items():
            by_group.setdefault((self._partitions[slot.parameter].group, slot.key), {})[slot.parameter] = value
        for parameter, numbers in saved["numbers"].items():
            for key, number in numbers.items():
                by_group.setdefault((self._partitions[parameter].group, key), {})[parameter] = number
        for (_, key), values in by_group.items():
            (parameter, value), *others = values.items()
            if different := [name for name, other in others if other != value]:
                raise CheckpointError(
                    f"optimizer.{different[0]}.{key} differs from optimizer.{parameter}.{key} in the checkpoint, but "
                    "DeepSpeed keeps one value for all parameters of a group. Continue with the strategy that wrote it."
                )
            owner = self._partitions[parameter].owner
            is_deepspeeds = type(self._optimizer).__module__.startswith("deepspeed.")
            self._optimizer.state[owner][key] = int(value) if is_deepspeeds and key == "step" else value
        load_settings(self._optimizer, saved, built_groups=self._built_groups)


def _check_slots(slots: list[_Slot], partitions: Partitions) -> None:
    mismatched = [slot for slot in slots if slot.stored.shape and slot.stored.shape != partitions[slot.parameter].shape]
    if mismatched:
        named = ", ".join(f"{slot} {list(slot.stored.shape)}" for slot in mismatched)
        raise CheckpointError(
            f"DeepSpeed partitions optimizer state by element, but in the checkpoint some state has a different shape "
            f"from its parameter: {named}. Continue with the strategy that wrote it, or with strategy=ddp."
        )
