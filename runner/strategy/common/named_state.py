"""Model and optimizer state by the model's parameter names, which any strategy can save and any other load. Law 6.

A tied parameter appears once, under its first name. Sharded tensors (DTensor) are passed through unchanged: the
checkpoint reads and writes each rank's own part.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from runner.errors import CheckpointError
from runner.protocols import SavedState, State, StoredTensor
from runner.protocols.state import MODEL
from runner.strategy.common.optimizer_step import without_dynamo
from runner.strategy.common.quantized_state import is_part, kept, live_part, make_state, parts_of

OptimizerTensors = dict[str, dict[str, Tensor]]
"""By parameter name, then by the optimizer's own key."""
AsStored = Callable[[str, Tensor], Tensor]
"""Given a parameter's name and a tensor of it (itself, or one of its optimizer), what stands for it in a checkpoint."""


NOTHING_ELSEWHERE: Mapping[str, tuple[int, ...]] = {}
"""This rank has something of every tensor of the model."""


def unchanged(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself."""
    return tensor


def model_tensors(model: Module, as_stored: AsStored = unchanged) -> dict[str, Tensor]:
    """The live parameters and persistent buffers.

    Raises:
        CheckpointError: the model's state_dict contains something that is not a tensor.
    """
    return {name: as_stored(name, value.detach()) for name, value in distinct_tensors(model)}


def distinct_tensors(model: Module) -> Iterable[tuple[str, Tensor]]:
    """The model's state_dict, with tied tensors only once.

    Raises:
        CheckpointError: it contains something that is not a tensor.
    """
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"model.{name} is a {type(value).__name__}: a checkpoint can only hold tensors. "
                "Register it as a buffer, or leave it out of state_dict."
            )
        if id(value) not in seen:
            seen.add(id(value))
            yield name, value


def check_same_model(
    state: State[Tensor], saved: SavedState, *, elsewhere: Mapping[str, tuple[int, ...]] = NOTHING_ELSEWHERE
) -> None:
    """Check that the model's tensors have the names and shapes of those in a checkpoint.

    Args:
        elsewhere: the shapes of the model's tensors that only other ranks have, by name.

    Raises:
        CheckpointError: lists every missing, unexpected and misshapen tensor.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in state.models[MODEL].items()} | dict(elsewhere)
    stored = saved.stored.models.get(MODEL, {})
    problems = [f"missing in the checkpoint: model.{name}" for name in wanted.keys() - stored.keys()]
    problems += [f"unexpected in the checkpoint: model.{name}" for name in stored.keys() - wanted.keys()]
    problems += [
        f"misshapen: model.{name} is {list(stored[name].shape)} in the checkpoint, {list(shape)} in the model"
        for name, shape in wanted.items()
        if name in stored and tuple(stored[name].shape) != shape
    ]
    if problems:
        raise CheckpointError("the checkpoint belongs to another model:\n  " + "\n  ".join(sorted(problems)))


def settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The settings of each parameter group, as they look after a round trip through JSON."""
    plain = [
        {
            key: value.item() if isinstance(value, Tensor) else value
            for key, value in group.items()
            if key not in ("params", "param_names")
        }
        for group in optimizer.param_groups
    ]
    groups: list[dict[str, Any]] = json.loads(json.dumps(plain))
    return groups


def load_settings(
    optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], *, built_groups: list[dict[str, Any]]
) -> None:
    """Load the parameter groups' settings from a checkpoint, except for those that this run's spec has changed since.

    Args:
        saved: the optimizer's values in the checkpoint: `groups`, and `built_groups` as the spec built them back then.
        built_groups: the settings as this run's spec built them.
    """
    if len(saved["groups"]) != len(built_groups):
        return
    rows = zip(optimizer.param_groups, saved["built_groups"], built_groups, saved["groups"], strict=True)
    for group, old_built, built, now in rows:
        loaded = {key: value for key, value in now.items() if old_built.get(key) == built.get(key)}
        group.update({key: kept(group.get(key), value) for key, value in loaded.items()})


def add_optimizer_state(
    state: State[Tensor],
    model: Module,
    optimizer: torch.optim.Optimizer,
    *,
    built_groups: list[dict[str, Any]],
    as_stored: AsStored = unchanged,
) -> None:
    """Add the optimizer's live tensors, plain numbers and settings to the state of its model."""
    tensors: OptimizerTensors = {}
    numbers: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                parts = {part: as_stored(name, tensor.detach()) for part, tensor in parts_of(name, key, value)}
                tensors.setdefault(name, {}).update(parts)
            else:
                numbers.setdefault(name, {})[key] = value
    state.optimizers[MODEL] = tensors
    state.values["optimizer"] = {
        "numbers": numbers,
        "groups": settings(optimizer),
        "built_groups": built_groups,
    }


def load_named_state(
    state: State[Tensor],
    model: Module,
    optimizer: torch.optim.Optimizer,
    saved: SavedState,
    *,
    built_groups: list[dict[str, Any]],
    as_stored: AsStored = unchanged,
    elsewhere: Mapping[str, tuple[int, ...]] = NOTHING_ELSEWHERE,
) -> None:
    """Load a model (whose tensors are in `state`) in place, and its optimizer.

    Raises:
        CheckpointError: lists every missing, unexpected and misshapen parameter.
    """
    check_same_model(state, saved, elsewhere=elsewhere)
    parameters = dict(model.named_parameters())
    slots: dict[str, dict[str, Any]] = {}
    state.optimizers[MODEL] = {}
    found = {name: one for name, one in saved.stored.optimizers.get(MODEL, {}).items() if name in parameters}
    if any(is_part(key) for stored in found.values() for key in stored):
        make_state(optimizer)
    for name, stored in found.items():
        slots[name], tensors = {}, {}
        for key, one in stored.items():
            if is_part(key):
                own, slots[name][own], tensors[key] = live_part(optimizer, parameters[name], name, key)
            else:
                slots[name][key] = tensors[key] = _allocate(parameters[name], one)
        state.optimizers[MODEL][name] = {key: as_stored(name, tensor) for key, tensor in tensors.items()}
    saved.read(state)
    values = state.values["optimizer"]
    for name, numbers in values["numbers"].items():
        slots.setdefault(name, {}).update(numbers)
    _load_optimizer(model, optimizer, slots)
    load_settings(optimizer, values, built_groups=built_groups)


def _allocate(parameter: Tensor, stored: StoredTensor) -> Tensor:
    """An empty tensor for optimizer state: with the device and sharding of its parameter if it has the same shape."""
    if stored.shape == tuple(parameter.shape):
        return torch.empty_like(parameter, dtype=stored.dtype, requires_grad=False)
    return torch.empty(stored.shape, dtype=stored.dtype)


def _load_optimizer(model: Module, optimizer: torch.optim.Optimizer, slots: Mapping[str, dict[str, Any]]) -> None:
    """Load the state with the optimizer's own load_state_dict, which moves each tensor to the right device."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: slots[names[id(parameter)]] for index, parameter in enumerate(order) if names[id(parameter)] in slots
    }
    with without_dynamo():
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
