"""From a configuration to an engine in which a model trains."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from runner.errors import HookError
from runner.protocols import Clip, Loss, Precision, Trainable, World
from runner.strategy.deepspeed import library
from runner.strategy.deepspeed.config import OF_GROUPS, ZERO, nested, shaped, told_of_batches, without_shape
from runner.strategy.deepspeed.gradients import Gradients
from runner.strategy.deepspeed.partitions import partition_each, partition_flat
from runner.strategy.deepspeed.state import NamedPartitions
from runner.strategy.deepspeed.trainable import CastLossModule, ZeroTrainable
from runner.strategy.deepspeed.weights import cut, put_back, whole


def build(
    joined: Mapping[str, Any],
    *,
    build_model: Callable[[], Module],
    build_optimizer: Callable[[Iterable[tuple[str, Parameter]]], torch.optim.Optimizer],
    loss: Callable[[Module, Any], Loss | Tensor],
    precision: Precision,
    clip: Clip,
    zero_init: bool,
    leaf_modules: Sequence[str],
    sync_buffers: bool,
    world: World,
) -> Trainable:
    """Import DeepSpeed, build the model as the stage wants it, and give both to each other. Collective.

    Args:
        joined: DeepSpeed's configuration, flat, but for what it is told of batches.

    Raises:
        HookError: the model lacks what the configuration refers to.
    """
    deepspeed = library.load(world)
    joined = {**_on_this_device(joined, world), **told_of_batches(world.size)}
    is_cut = joined[ZERO + "stage"] == 3
    dtype = precision.dtypes.param
    alone = library.open_group(world)
    model, made = _make(build_model, joined, dtype=dtype, is_cut=is_cut, zero_init=zero_init, world=world)
    _mark_leaves(model, leaf_modules)
    named = dict(model.named_parameters())
    optimizer = build_optimizer(named.items())
    groups = _groups(optimizer, named)  # now: DeepSpeed puts flat tensors in the place of parameters
    autocast = precision.autocast(world.device.type)
    loss_module = CastLossModule(model, loss, autocast=autocast, input_dtype=None if dtype == torch.float32 else dtype)
    config = nested(shaped(joined, model))
    with library.quiet():
        engine = _engine(deepspeed, loss_module, optimizer, config)
        partitions = (partition_each if is_cut else partition_flat)(engine.optimizer, groups, named, rank=world.rank)
        put_back(made, partitions, named, is_cut=is_cut)
    trainable = ZeroTrainable(
        engine,
        loss_module=loss_module,
        state=NamedPartitions(model, engine.optimizer.optimizer, partitions, rank=world.rank),
        gradients=Gradients(engine.optimizer, clip, world),
        scaler=precision.scaler(),
        sync_buffers=list(model.buffers()) if sync_buffers and world.size > 1 else [],
        world=world,
    )
    # Whoever drops the trainable is done with the engine, whose own references go round in circles.
    weakref.finalize(trainable, library.leave, engine, alone=alone).atexit = False
    return trainable


def _make(
    build_model: Callable[[], Module],
    joined: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    is_cut: bool,
    zero_init: bool,
    world: World,
) -> tuple[Module, dict[int, Tensor]]:
    """The model, and of each parameter (by its id) what will have to be put back."""
    if is_cut:
        return cut(build_model, inside=zero_init, config=nested(without_shape(joined)), dtype=dtype, world=world)
    return whole(build_model, dtype=dtype)


def _engine(
    deepspeed: ModuleType, loss_module: Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]
) -> Any:
    """DeepSpeed's, with its own optimizer where the configuration names one. Collective."""
    own = "optimizer" in config
    engine, *_ = deepspeed.initialize(
        model=loss_module,
        optimizer=None if own else optimizer,
        model_parameters=_settings_of_groups(optimizer) if own else None,
        config=config,
    )
    return engine


def _on_this_device(joined: Mapping[str, Any], world: World) -> dict[str, Any]:
    """On the host itself there is nothing to pin memory for."""
    pins = world.device.type != "cpu"
    sections = [ZERO + "offload_optimizer.", ZERO + "offload_param."]
    return {section + "pin_memory": pins for section in sections if section + "device" in joined} | dict(joined)


def _mark_leaves(model: Module, names: Sequence[str]) -> None:
    if not names:
        return
    from deepspeed.utils import set_z3_leaf_modules

    classes = {type(module).__name__: type(module) for module in model.modules()}
    if unknown := sorted(set(names) - set(classes)):
        rule = f"The model has modules of {', '.join(sorted(classes))}."
        raise HookError(f"strategy.moe_leaf_modules names {', '.join(unknown)}, of which the model has none. {rule}")
    set_z3_leaf_modules(model, [classes[name] for name in names])


def _groups(optimizer: torch.optim.Optimizer, named: Mapping[str, Parameter]) -> dict[str, int]:
    """In which of the optimizer's groups each trained parameter is."""
    places = {
        id(parameter): index for index, group in enumerate(optimizer.param_groups) for parameter in group["params"]
    }
    return {name: places[id(parameter)] for name, parameter in named.items() if id(parameter) in places}


def _settings_of_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """For DeepSpeed's own optimizer: torch's groups, with the settings that both know."""
    return [
        {key: value for key, value in group.items() if key in ("params", *OF_GROUPS)}
        for group in optimizer.param_groups
    ]
