"""Fully sharded data parallel by torch's fully_shard: over all ranks, or inside groups that are replicas (HSDP)."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, final

from runner.errors import Fault
from runner.protocols import Axes, Axis, Builder, Precision, Trainable, World
from runner.strategy.fsdp.wrap import Wrap, asks_for_classes

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.nn import Module

    from runner.config.run_spec import RunSpec
    from runner.strategy.common.placed_module import PlacedModule
    from runner.strategy.fsdp.shard import ShardingPlan
    from runner.strategy.fsdp.trainable import PlacedShards, ShardedTrainable
    from runner.strategy.fsdp.units import Units


class Sharding(Enum):
    """What is sharded among the ranks of a shard group, and when."""

    FULL_SHARD = "full_shard"
    """Parameters, gradients and optimizer state; a unit's parameters are gathered only while it runs. ZeRO stage 3."""
    SHARD_GRAD_OP = "shard_grad_op"
    """The same, except that a unit's parameters stay gathered from its forward to its backward. ZeRO stage 2."""
    NO_SHARD = "no_shard"
    """Nothing. Rejected: use strategy=ddp."""


class Gather(Enum):
    """The dtype in which parameters are gathered and used in the forward."""

    STORED = "stored"
    """The dtype they are stored in: autocast then does the same as under every other strategy."""
    PRECISION = "precision"
    """The dtype of the precision: half the bytes under bf16, but norms and embeddings use rounded weights too."""


class Build(Enum):
    """Which ranks build the full model on the host before it is sharded."""

    EVERY_RANK = "every_rank"
    """All of them, from the same seed: nothing is sent, and it works for any model."""
    RANK_0 = "rank_0"
    """Rank 0; the others build it on torch's meta device and receive their shards."""


@final
@dataclass(frozen=True, kw_only=True)
class FSDP:
    """Every rank holds a shard of each parameter, of its gradient and of its optimizer state."""

    sharding: Sharding = Sharding.FULL_SHARD
    """What is sharded, and when."""
    shard_size: int | None = None
    """Ranks that share one copy of the model; null = all. Groups of this size are replicas of each other."""
    wrap: Wrap = Wrap.AUTO
    """Which modules are units, gathered and freed as one."""
    wrap_classes: list[str] = field(default_factory=list)
    """Class names of the units, for wrap=classes and wrap=auto."""
    wrap_min_params: int = 100_000_000
    """Fewest parameters that make a module a unit, for wrap=size."""
    gather: Gather = Gather.STORED
    """The dtype in which parameters are gathered."""
    forward_prefetch: int = 0
    """Units gathered ahead in the forward; 0 = each when it is reached."""
    backward_prefetch: int = 1
    """Units gathered ahead in the backward; 0 = each when it is reached."""
    sync_each_round: bool = False
    """Reduce gradients in every micro-batch, so that no rank ever stores unsharded ones."""
    offload: bool = False
    """Keep shards of parameters, gradients and optimizer state in host memory; the optimizer steps there."""
    pin_memory: bool = True
    """Keep offloaded shards in page-locked memory, which allows asynchronous copies to the device."""
    build: Build = Build.EVERY_RANK
    """Which ranks build the full model on the host before it is sharded."""
    sync_buffers: bool = True
    """Broadcast the buffers of rank 0 before each step."""
    unused_parameters: bool = False
    """Ranks may use different parameters in one step: reduce zeros for those without a gradient."""

    def __post_init__(self) -> None:
        if self.sharding is Sharding.NO_SHARD:
            raise ValueError("sharding=no_shard shards nothing. Use strategy=ddp instead.")
        if self.shard_size is not None and self.shard_size < 1:
            raise ValueError(f"shard_size={self.shard_size} must be at least 1. Use null for all ranks.")
        if self.wrap is Wrap.CLASSES and not self.wrap_classes:
            raise ValueError("wrap_classes=[] is empty, but wrap=classes needs class names. Name some, or use auto.")
        if self.wrap_min_params < 1:
            raise ValueError(f"wrap_min_params={self.wrap_min_params} must be at least 1.")
        for name, value in (("forward_prefetch", self.forward_prefetch), ("backward_prefetch", self.backward_prefetch)):
            if value < 0:
                raise ValueError(f"{name}={value} must not be negative. Use 0 to gather each unit when it is reached.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Report a shard size of 1; `axes` checks that the shard size divides the number of ranks."""
        if self.shard_size == 1 and spec.world_size > 1:
            rule = "1 shards nothing. Use strategy=ddp instead, or a larger size."
            yield Fault(key="strategy.shard_size", message=rule)

    def model_checks(self, spec: "RunSpec") -> "Iterable[Callable[[Module], Iterable[Fault]]]":
        """Check that the model has the classes that become units."""
        from runner.strategy.fsdp.units import wrap_faults

        if asks_for_classes(self.wrap, self.wrap_classes):
            yield partial(wrap_faults, wrap=self.wrap, classes=self.wrap_classes, key="strategy")

    def axes(self, num_ranks: int) -> Axes:
        """One shard axis, preceded by a replicate axis if the shard size is smaller than the number of ranks.

        Raises:
            ValueError: the shard size does not divide the number of ranks.
        """
        size = num_ranks if self.shard_size is None else self.shard_size
        if num_ranks % size:
            sizes = [str(n) for n in range(2, num_ranks + 1) if num_ranks % n == 0]
            rule = f"strategy.shard_size={size} does not divide the {num_ranks} ranks."
            raise ValueError(f"{rule} Use {' or '.join(sizes) or 'null'}, or another number of ranks.")
        if size == num_ranks:
            return Axes(names=(Axis.SHARD,), sizes=(num_ranks,), data=(Axis.SHARD,))
        axes = (Axis.REPLICATE, Axis.SHARD)
        return Axes(names=axes, sizes=(num_ranks // size, size), data=axes)

    def place(self, builder: Builder, world: World) -> "PlacedModule | PlacedShards":
        """The sharded model, or the plain model in a world of one."""
        return self._place_alone(builder, world) if world.size == 1 else self._place_shards(builder, world)[0]

    def prepare(self, builder: Builder, world: World) -> Trainable:
        """Shard the model, then build the optimizer over the shards; in a world of one, train the plain model."""
        from runner.strategy.common.module_trainable import ModuleTrainable

        if world.size == 1:
            return ModuleTrainable(self._place_alone(builder, world), builder, world)
        return self.prepare_shards(builder, world)

    def prepare_shards(
        self,
        builder: Builder,
        world: World,
        *,
        stepping: World | None = None,
        counted_over: Callable[[], World] | None = None,
    ) -> "ShardedTrainable":
        """Shard the model among these ranks, then build the optimizer; the rest is as in ShardedTrainable."""
        from runner.strategy.fsdp.trainable import ShardedTrainable

        placed, units = self._place_shards(builder, world)
        no_sync = self._no_sync(units, world.axes)
        return ShardedTrainable(placed, builder, world, no_sync=no_sync, stepping=stepping, counted_over=counted_over)

    def _place_alone(self, builder: Builder, world: World) -> "PlacedModule":
        from runner.strategy.common.placed_module import PlacedModule

        model = builder.build_whole_model().to(world.device)
        self._units(
            model
        )  # so that class names which match no module fail here too, not only in a run on several devices
        return PlacedModule(model, builder, world.device)

    def _place_shards(self, builder: Builder, world: World) -> "tuple[PlacedShards, list[FSDPModule]]":
        """Build, shard and, with build=rank_0, send the weights."""
        # fully_shard takes half a second to import: only runs that shard a model pay for it.
        from runner.strategy.common.loss_module import LossModule
        from runner.strategy.fsdp.build_on_rank_0 import build_on_meta, full_tensors, send_shards
        from runner.strategy.fsdp.shard import prefetch, shard
        from runner.strategy.fsdp.trainable import PlacedShards

        plan = self._plan(builder.precision, world)
        receives = self.build is Build.RANK_0 and not world.is_main
        model = build_on_meta(builder.build_whole_model) if receives else builder.build_whole_model()
        full = full_tensors(model) if world.is_main else {}
        root = LossModule(model, builder.loss)
        units = shard(root, self._units(model), plan)
        if self.build is Build.RANK_0:
            group = plan.mesh.get_group(Axis.SHARD)
            send_shards(model, full, shard_group=group, world=world, offloaded=self.offload)
        prefetch(units, forward=self.forward_prefetch, backward=self.backward_prefetch)
        return PlacedShards(root, units, builder, world, sync_buffers=self.sync_buffers), units

    def _units(self, model: "Module") -> "Units":
        from runner.strategy.fsdp.units import units_of

        classes, min_params = self.wrap_classes, self.wrap_min_params
        return units_of(model, wrap=self.wrap, classes=classes, min_params=min_params, key="strategy")

    def _plan(self, precision: Precision, world: World) -> "ShardingPlan":
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy

        from runner.strategy.fsdp.shard import ShardingPlan

        on_device = world.device.type != "cpu"
        return ShardingPlan(
            mesh=world.mesh(),
            free_after_forward=self.sharding is Sharding.FULL_SHARD,
            param_dtype=precision.dtypes.param if self.gather is Gather.PRECISION else None,
            reduce_dtype=precision.dtypes.reduce,
            offload=CPUOffloadPolicy(pin_memory=self.pin_memory and on_device) if self.offload else OffloadPolicy(),
            unused_parameters=self.unused_parameters,
        )

    def _no_sync(self, units: "list[FSDPModule]", axes: Axes) -> Callable[[], AbstractContextManager[Any]]:
        """What all micro-batches of a step but the last leave out."""
        from runner.strategy.fsdp.shard import no_all_reduce, no_gradient_sync

        if not self.sync_each_round:
            return partial(no_gradient_sync, units, keep_gathered=self.sharding is not Sharding.FULL_SHARD)
        return partial(no_all_reduce, units) if axes.size([Axis.REPLICATE]) > 1 else nullcontext
