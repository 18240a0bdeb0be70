"""From a configuration to an engine in which a model trains."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from runner.errors import ModelError
from runner.protocols import Builder, World
from runner.strategy.deepspeed import library
from runner.strategy.deepspeed.config import OF_GROUPS, ZERO, nested, shaped, told_of_batches, without_shape
from runner.strategy.deepspeed.gradients import Gradients
from runner.strategy.deepspeed.partitions import partition_each, partition_flat
from runner.strategy.deepspeed.placed import CastLossModule, PlacedZero
from runner.strategy.deepspeed.state import NamedPartitions
from runner.strategy.deepspeed.trainable import ZeroTrainable
from runner.strategy.deepspeed.weights import cut, put_back, whole


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a DeepSpeed strategy asks for beside DeepSpeed's own configuration."""

    joined: Mapping[str, Any]
    """DeepSpeed's configuration, flat, without its batch section."""
    zero_init: bool
    leaf_modules: Sequence[str]
    sync_buffers: bool

    @property
    def is_cut(self) -> bool:
        """Whether parameters are partitioned: stage 3."""
        return bool(self.joined[ZERO + "stage"] == 3)


class _Made(NamedTuple):
    """A model as the stage wants it, before there is an engine."""

    loss_module: CastLossModule
    exact: dict[int, Tensor]
    """Of each parameter, by its id, the elements as the hook made them, where DeepSpeed rounds them."""
    config: dict[str, Any]
    """DeepSpeed's, complete and nested."""


def place(settings: Settings, builder: Builder, world: World) -> PlacedZero:
    """A model without an optimizer, its parameters partitioned: ZeRO inference. Stage 3 only. Collective.

    Raises:
        ModelError: the model lacks what the configuration refers to.
    """
    deepspeed = library.load(world)
    alone = library.open_group(world)
    made = _make(settings, builder, world)
    with library.quiet():
        engine, *_ = deepspeed.initialize(model=made.loss_module, config=made.config)
    placed = PlacedZero(engine, made.loss_module, sync_buffers=settings.sync_buffers, world=world)
    weakref.finalize(placed, library.leave, engine, alone=alone).atexit = False
    return placed


def prepare(settings: Settings, builder: Builder, world: World) -> ZeroTrainable:
    """Import DeepSpeed, build the model as the stage wants it, and give both to each other. Collective.

    Raises:
        ModelError: the model lacks what the configuration refers to.
    """
    deepspeed = library.load(world)
    alone = library.open_group(world)
    made = _make(settings, builder, world)
    model = made.loss_module.model
    named = dict(model.named_parameters())
    optimizer = builder.build_optimizer(named.items())
    groups = _groups(optimizer, named)  # now: DeepSpeed puts flat tensors in the place of parameters
    lay_out = partition_each if settings.is_cut else partition_flat
    with library.quiet():
        engine = _engine(deepspeed, made.loss_module, optimizer, made.config)
        partitions = lay_out(engine.optimizer, groups, named, rank=world.rank)
        put_back(made.exact, partitions, named, is_cut=settings.is_cut)
    trainable = ZeroTrainable(
        PlacedZero(engine, made.loss_module, sync_buffers=settings.sync_buffers, world=world),
        engine,
        state=NamedPartitions(model, engine.optimizer.optimizer, partitions, rank=world.rank),
        gradients=Gradients(engine.optimizer, builder.clip, world),
        scaler=builder.precision.scaler(),
        world=world,
    )
    # Whoever drops the trainable is done with the engine, whose own references form cycles.
    weakref.finalize(trainable, library.leave, engine, alone=alone).atexit = False
    return trainable


def _make(settings: Settings, builder: Builder, world: World) -> _Made:
    """Build the model, partitioned if the stage does that, and complete the configuration with its sizes."""
    joined = {**_on_this_device(settings.joined, world), **told_of_batches(world.size)}
    dtype = builder.precision.dtypes.param
    if settings.is_cut:
        config = nested(without_shape(joined))
        build = builder.build_whole_model
        model, exact = cut(build, inside=settings.zero_init, config=config, dtype=dtype, world=world)
    else:
        model, exact = whole(builder.build_whole_model, dtype=dtype)
    _mark_leaves(model, settings.leaf_modules)
    loss_module = CastLossModule(
        model,
        builder.loss,
        autocast=builder.precision.autocast(world.device.type),
        input_dtype=None if dtype == torch.float32 else dtype,
    )
    return _Made(loss_module, exact, nested(shaped(joined, model)))


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
        raise ModelError(f"strategy.moe_leaf_modules names {', '.join(unknown)}, of which the model has none. {rule}")
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
