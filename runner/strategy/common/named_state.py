"""Model and optimizer by the model's own parameter names: what every strategy saves and every other one loads. Law 6.

    model.<name>              a parameter or persistent buffer; a tied one once, under its first name
    optimizer.<name>.<key>    what the optimizer keeps for that parameter (exp_avg, momentum_buffer, …)

Sharded tensors (DTensor) pass through as they are: the checkpoint reads and writes each rank's own part.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from runner.errors import CheckpointError
from runner.protocols import State, StoredTensor

MODEL = "model."
OPTIMIZER = "optimizer."


def named_state(model: Module, optimizer: torch.optim.Optimizer) -> State:
    """The live tensors, and the optimizer's settings and plain numbers."""
    state = State(tensors={MODEL + name: tensor for name, tensor in _model_tensors(model)})
    numbers: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                state.tensors[f"{OPTIMIZER}{name}.{key}"] = value.detach()
            else:
                numbers.setdefault(name, {})[key] = value
    state.values["optimizer"] = {"numbers": numbers, "groups": settings(optimizer)}
    return state


def load_named_state(
    model: Module,
    optimizer: torch.optim.Optimizer,
    read: Callable[[State], None],
    stored: Mapping[str, StoredTensor],
    *,
    built_groups: list[dict[str, Any]],
) -> None:
    """Fill model and optimizer in place.

    Args:
        built_groups: the optimizer's settings as this run's spec built them: a setting that the spec has changed since
            the checkpoint keeps its new value, any other continues from the stored one.

    Raises:
        CheckpointError: names every missing, unexpected and misshapen parameter.
    """
    state = State(tensors={MODEL + name: tensor for name, tensor in _model_tensors(model)})
    _check_same_model(state.tensors, {name: found for name, found in stored.items() if name.startswith(MODEL)})
    parameters = dict(model.named_parameters())
    slots: dict[str, dict[str, Any]] = {}
    for name, (shape, dtype) in stored.items():
        owner, _, key = name.removeprefix(OPTIMIZER).rpartition(".")
        if name.startswith(OPTIMIZER) and owner in parameters:
            slots.setdefault(owner, {})[key] = state.tensors[name] = _room_for(parameters[owner], shape, dtype)
    read(state)
    kept = state.values["optimizer"]
    for name, numbers in kept["numbers"].items():
        slots.setdefault(name, {}).update(numbers)
    _load_optimizer(model, optimizer, slots)
    if len(kept["groups"]) == len(built_groups):
        rows = zip(optimizer.param_groups, kept["built_groups"], built_groups, kept["groups"], strict=True)
        for group, old_built, built, now in rows:
            group.update({key: value for key, value in now.items() if old_built.get(key) == built.get(key)})


def _model_tensors(model: Module) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"model.{name} is a {type(value).__name__}: a checkpoint holds tensors only. "
                "Register it as a buffer, or leave it out of state_dict."
            )
        if id(value) not in seen:
            seen.add(id(value))
            yield name, value.detach()


def settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The settings of each parameter group, as JSON will give them back."""
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


def _check_same_model(wanted: Mapping[str, Tensor], stored: Mapping[str, StoredTensor]) -> None:
    problems = [f"missing in the checkpoint: {name}" for name in wanted.keys() - stored.keys()]
    problems += [f"unexpected in the checkpoint: {name}" for name in stored.keys() - wanted.keys()]
    problems += [
        f"misshapen: {name} is {list(stored[name].shape)} in the checkpoint, {list(tensor.shape)} in the model"
        for name, tensor in wanted.items()
        if name in stored and stored[name].shape != tuple(tensor.shape)
    ]
    if problems:
        raise CheckpointError("the checkpoint is of another model:\n  " + "\n  ".join(sorted(problems)))


def _room_for(parameter: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty tensor for a piece of optimizer state: placed as its parameter where it has its shape."""
    if shape == tuple(parameter.shape):
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(shape, dtype=dtype)


def _load_optimizer(model: Module, optimizer: torch.optim.Optimizer, slots: Mapping[str, dict[str, Any]]) -> None:
    """Hand the state over through the optimizer's own load_state_dict, which knows where each piece must live."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    whole = optimizer.state_dict()
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    whole["state"] = {
        index: slots[names[id(parameter)]] for index, parameter in enumerate(order) if names[id(parameter)] in slots
    }
    optimizer.load_state_dict(whole)
