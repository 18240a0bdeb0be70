"""Builds the DeepSpeed engine that trains or evaluates a model."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from runner.model.blocks import blocks_of
from runner.protocols import Builder, World
from runner.strategy.deepspeed import library
from runner.strategy.deepspeed.config import (
    GROUP_SETTINGS,
    ZERO,
    drop_auto,
    fill_hidden_size_keys,
    placeholder_batch,
    unflatten,
)
from runner.strategy.deepspeed.gradients import Gradients
from runner.strategy.deepspeed.partitions import partition_each, partition_flat
from runner.strategy.deepspeed.placed import CastLossModule, PlacedZero
from runner.strategy.deepspeed.state import NamedPartitions
from runner.strategy.deepspeed.trainable import ZeroTrainable
from runner.strategy.deepspeed.weights import build_full, build_partitioned, restore_exact_weights


@dataclass(frozen=True, kw_only=True)
class Settings:
    """DeepSpeed's configuration and the strategy's settings beyond it."""

    merged: Mapping[str, Any]
    """DeepSpeed's configuration, flat, without its batch section."""
    zero_init: bool
    leaf_modules: Sequence[str]
    sync_buffers: bool

    @property
    def is_partitioned(self) -> bool:
        """Whether parameters are partitioned: stage 3."""
        return bool(self.merged[ZERO + "stage"] == 3)


class _Built(NamedTuple):
    """A model as the stage requires it, and the rest of what an engine is built from."""

    loss_module: CastLossModule
    exact: dict[int, Tensor]
    """Elements of each parameter (by id) as the model hook initialised them, where DeepSpeed rounds them."""
    config: dict[str, Any]
    """DeepSpeed's complete configuration, nested."""


def place(settings: Settings, builder: Builder, world: World) -> PlacedZero:
    """A model without an optimizer, its parameters partitioned: ZeRO-Inference. Stage 3 only. Collective.

    Raises:
        ModelError: the model lacks what the configuration refers to.
    """
    deepspeed = library.load(world)
    created_group = library.open_group(world)
    built = _build(settings, builder, world)
    with library.quiet():
        engine, *_ = deepspeed.initialize(model=built.loss_module, config=built.config)
    placed = PlacedZero(engine, built.loss_module, sync_buffers=settings.sync_buffers, world=world)
    weakref.finalize(placed, library.release, engine, created_group=created_group).atexit = False
    return placed


def prepare(settings: Settings, builder: Builder, world: World) -> ZeroTrainable:
    """Import DeepSpeed, build the model as the stage requires it, and wrap it in an engine. Collective.

    Raises:
        ModelError: the model lacks what the configuration refers to.
    """
    deepspeed = library.load(world)
    created_group = library.open_group(world)
    built = _build(settings, builder, world)
    model = built.loss_module.model
    named = dict(model.named_parameters())
    optimizer = builder.build_optimizer(named.items())
    groups = _groups(optimizer, named)  # before DeepSpeed replaces parameters by flat tensors
    partition = partition_each if settings.is_partitioned else partition_flat
    with library.quiet():
        engine = _engine(deepspeed, built.loss_module, optimizer, built.config)
        partitions = partition(engine.optimizer, groups, named, rank=world.rank)
        restore_exact_weights(built.exact, partitions, named, is_partitioned=settings.is_partitioned)
    trainable = ZeroTrainable(
        PlacedZero(engine, built.loss_module, sync_buffers=settings.sync_buffers, world=world),
        engine,
        state=NamedPartitions(model, engine.optimizer.optimizer, partitions, rank=world.rank),
        gradients=Gradients(engine.optimizer, builder.clip, world),
        scaler=builder.precision.scaler(),
        world=world,
    )
    # The engine's references form cycles: release it explicitly once the trainable is gone.
    weakref.finalize(trainable, library.release, engine, created_group=created_group).atexit = False
    return trainable


def _build(settings: Settings, builder: Builder, world: World) -> _Built:
    """Build the model, partitioned under stage 3, and fill in the configuration's sizes from it."""
    merged = {**_on_this_device(settings.merged, world), **placeholder_batch(world.size)}
    dtype = builder.precision.dtypes.param
    if settings.is_partitioned:
        config = unflatten(drop_auto(merged))
        build = builder.build_whole_model
        model, exact = build_partitioned(build, during_init=settings.zero_init, config=config, dtype=dtype, world=world)
    else:
        model, exact = build_full(builder.build_whole_model, dtype=dtype)
    _mark_leaves(model, settings.leaf_modules)
    loss_module = CastLossModule(
        model,
        builder.loss,
        autocast=builder.precision.autocast(world.device.type),
        input_dtype=None if dtype == torch.float32 else dtype,
    )
    return _Built(loss_module, exact, unflatten(fill_hidden_size_keys(merged, model)))


def _engine(
    deepspeed: ModuleType, loss_module: Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]
) -> Any:
    """The DeepSpeed engine, with DeepSpeed's optimizer if the configuration names one. Collective."""
    use_deepspeeds = "optimizer" in config
    engine, *_ = deepspeed.initialize(
        model=loss_module,
        optimizer=None if use_deepspeeds else optimizer,
        model_parameters=_settings_of_groups(optimizer) if use_deepspeeds else None,
        config=config,
    )
    return engine


def _on_this_device(merged: Mapping[str, Any], world: World) -> dict[str, Any]:
    """The configuration, pinning offload memory by default unless the device is the CPU."""
    pin = world.device.type != "cpu"
    sections = [ZERO + "offload_optimizer.", ZERO + "offload_param."]
    return {section + "pin_memory": pin for section in sections if section + "device" in merged} | dict(merged)


def _mark_leaves(model: Module, names: Sequence[str]) -> None:
    if not names:
        return
    from deepspeed.utils import set_z3_leaf_modules

    modules = blocks_of(model, names, key="strategy.moe_leaf_modules")
    set_z3_leaf_modules(model, list(dict.fromkeys(type(module) for module in modules)))


def _groups(optimizer: torch.optim.Optimizer, named: Mapping[str, Parameter]) -> dict[str, int]:
    """The index of each trained parameter's optimizer group, by name."""
    indices = {
        id(parameter): index for index, group in enumerate(optimizer.param_groups) for parameter in group["params"]
    }
    return {name: indices[id(parameter)] for name, parameter in named.items() if id(parameter) in indices}


def _settings_of_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Parameter groups for DeepSpeed's own optimizer, with the settings that it shares with torch's."""
    return [
        {key: value for key, value in group.items() if key in ("params", *GROUP_SETTINGS)}
        for group in optimizer.param_groups
    ]
