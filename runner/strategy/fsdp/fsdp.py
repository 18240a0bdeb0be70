"""Fully sharded data parallel by torch's fully_shard: along one axis of ranks, or inside groups that are replicated."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, final

from torch.nn import Module

from runner.errors import Fault
from runner.protocols import Axes, Axis, Builder, Precision, Trainable, World
from runner.strategy.common.module_trainable import ModuleTrainable
from runner.strategy.common.placed_module import PlacedModule
from runner.strategy.fsdp.units import Units, Wrap, asks_for_classes, units_of, wrap_faults

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

    from runner.config.run_spec import RunSpec
    from runner.strategy.fsdp.shard import ShardingPlan
    from runner.strategy.fsdp.trainable import PlacedShards


class What(Enum):
    """What is cut among the ranks of a shard group."""

    FULL_SHARD = "full_shard"
    """Parameters, gradients and optimizer state; a unit's parameters are whole only while it runs. ZeRO stage 3."""
    SHARD_GRAD_OP = "shard_grad_op"
    """The same between steps; from a unit's forward to its backward its parameters stay whole. ZeRO stage 2."""
    NO_SHARD = "no_shard"
    """Nothing: that is strategy=ddp."""


class Gather(Enum):
    """In which type parameters travel and meet the forward."""

    STORED = "stored"
    """As they are stored: autocast then does what it does under every other strategy."""
    PRECISION = "precision"
    """As the precision says: half the bytes under bf16, but norms and embeddings, too, see rounded weights."""


class Build(Enum):
    """Which ranks hold the whole model on the host while it is plan."""

    EVERY_RANK = "every_rank"
    """All of them, each from the same seed: nothing is sent, and any model can be built so."""
    RANK_0 = "rank_0"
    """Rank 0; the others build its outline on torch's meta device and are sent their shards."""


@final
@dataclass(frozen=True, kw_only=True)
class FSDP:
    """Every rank holds a part of each parameter, of its gradient and of what the optimizer keeps for it."""

    sharding: What = What.FULL_SHARD
    """What is plan."""
    shard_size: int | None = None
    """Ranks that hold one copy of the model between them; null = all. Groups of so many are replicas of each other."""
    wrap: Wrap = Wrap.AUTO
    """Which modules are gathered as one piece."""
    wrap_classes: list[str] = field(default_factory=list)
    """Class names of those modules, for wrap=classes and wrap=auto."""
    wrap_min_params: int = 100_000_000
    """Parameters from which on a module becomes a piece, for wrap=size."""
    gather: Gather = Gather.STORED
    """In which type parameters are gathered."""
    forward_prefetch: int = 0
    """Pieces gathered ahead in the forward; 0 = each when it is reached."""
    backward_prefetch: int = 1
    """Pieces gathered ahead in the backward; 0 = each when it is reached."""
    sync_each_round: bool = False
    """Exchange gradients in every accumulation round, so that none is ever held whole."""
    offload: bool = False
    """Keep shards of parameters, gradients and optimizer state on the host; the optimizer steps there."""
    pin_memory: bool = True
    """Keep what is offloaded in page-locked memory, from which the device copies without waiting."""
    build: Build = Build.EVERY_RANK
    """Which ranks hold the whole model on the host while it is plan."""
    sync_buffers: bool = True
    """Before each step, give every rank the buffers of rank 0."""
    unused_parameters: bool = False
    """Ranks may use different parameters in one step: exchange zeros for those without a gradient."""

    def __post_init__(self) -> None:
        if self.sharding is What.NO_SHARD:
            raise ValueError("sharding=no_shard keeps everything on every rank: that is strategy=ddp. Use that.")
        if self.shard_size is not None and self.shard_size < 1:
            raise ValueError(f"shard_size={self.shard_size} must be at least 1. Use null for all ranks.")
        if self.wrap is Wrap.CLASSES and not self.wrap_classes:
            raise ValueError("wrap_classes=[] names nothing, but wrap=classes goes by it. Name classes, or use auto.")
        if self.wrap_min_params < 1:
            raise ValueError(f"wrap_min_params={self.wrap_min_params} must be at least 1.")
        for name, value in (("forward_prefetch", self.forward_prefetch), ("backward_prefetch", self.backward_prefetch)):
            if value < 0:
                raise ValueError(f"{name}={value} must not be negative. Use 0 to gather each piece when it is reached.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Goes with any number of processes that the shard size divides, one included."""
        if self.shard_size == 1 and spec.world_size > 1:
            rule = "1 leaves every rank with the whole model: that is strategy=ddp. Use that, or a larger size."
            yield Fault(key="strategy.shard_size", message=rule)

    def model_checks(self, spec: "RunSpec") -> Iterable[Callable[[Module], Iterable[Fault]]]:
        """The model must have the classes that are to be wrapped."""
        if asks_for_classes(self.wrap, self.wrap_classes):
            yield partial(wrap_faults, wrap=self.wrap, classes=self.wrap_classes, key="strategy")

    def axes(self, num_ranks: int) -> Axes:
        """One axis of shards; in front of it one of replicas, if the shards take fewer ranks than there are.

        Raises:
            ValueError: the shard size does not divide them.
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
        """The sharded model, or the model itself in a world of one."""
        return self._place_alone(builder, world) if world.size == 1 else self._place_shards(builder, world)[0]

    def prepare(self, builder: Builder, world: World) -> Trainable:
        """Shard the model, then build the optimizer over the shards. A world of one has nothing to shard."""
        if world.size == 1:
            return ModuleTrainable(self._place_alone(builder, world), builder, world)
        from runner.strategy.fsdp.trainable import ShardedTrainable

        placed, units = self._place_shards(builder, world)
        return ShardedTrainable(placed, builder, world, no_sync=self._no_sync(units, world.axes))

    def _place_alone(self, builder: Builder, world: World) -> PlacedModule:
        model = builder.build_whole_model().to(world.device)
        self._units(model)  # names that match no module are an error here, too, and not first on a large machine
        return PlacedModule(model, builder, world.device)

    def _place_shards(self, builder: Builder, world: World) -> "tuple[PlacedShards, list[FSDPModule]]":
        """Build, shard and, with build=rank_0, send the weights."""
        # fully_shard takes half a second to import: only who shards a model pays for it.
        from runner.strategy.common.loss_module import LossModule
        from runner.strategy.fsdp.build_on_rank_0 import outline, send_shards, whole_tensors
        from runner.strategy.fsdp.shard import prefetch, shard
        from runner.strategy.fsdp.trainable import PlacedShards

        plan = self._plan(builder.precision, world)
        is_sent = self.build is Build.RANK_0 and not world.is_main
        model = outline(builder.build_whole_model) if is_sent else builder.build_whole_model()
        whole = whole_tensors(model) if world.is_main else {}
        root = LossModule(model, builder.loss)
        units = shard(root, self._units(model), plan)
        if self.build is Build.RANK_0:
            group = plan.mesh.get_group(Axis.SHARD)
            send_shards(model, whole, shard_group=group, world=world, offloaded=self.offload)
        prefetch(units, forward=self.forward_prefetch, backward=self.backward_prefetch)
        return PlacedShards(root, units, builder, world, sync_buffers=self.sync_buffers), units

    def _units(self, model: Module) -> Units:
        classes, least = self.wrap_classes, self.wrap_min_params
        return units_of(model, wrap=self.wrap, classes=classes, min_params=least, key="strategy")

    def _plan(self, precision: Precision, world: World) -> "ShardingPlan":
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy

        from runner.strategy.fsdp.shard import ShardingPlan

        on_device = world.device.type != "cpu"
        return ShardingPlan(
            mesh=world.mesh(),
            free_after_forward=self.sharding is What.FULL_SHARD,
            param_dtype=precision.dtypes.param if self.gather is Gather.PRECISION else None,
            reduce_dtype=precision.dtypes.reduce,
            offload=CPUOffloadPolicy(pin_memory=self.pin_memory and on_device) if self.offload else OffloadPolicy(),
            unused_parameters=self.unused_parameters,
        )

    def _no_sync(self, units: "list[FSDPModule]", axes: Axes) -> Callable[[], AbstractContextManager[Any]]:
        """What all micro-batches of a step but the last leave out."""
        from runner.strategy.fsdp.shard import gradients_held, replicas_held

        if not self.sync_each_round:
            return partial(gradients_held, units, keep_gathered=self.sharding is not What.FULL_SHARD)
        return partial(replicas_held, units) if axes.size([Axis.REPLICATE]) > 1 else nullcontext
