"""The keys of every strategy that shards a model by torch's fully_shard, and what follows from them."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, final

from runner.errors import Fault
from runner.protocols import Axes, Axis, Builder, Precision, World
from runner.strategy.fsdp.wrap import Wrap, asks_for_classes

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule
    from torch.nn import Module

    from runner.strategy.common.named_state import AsStored
    from runner.strategy.common.placed_module import PlacedModule
    from runner.strategy.fsdp.shard import Apart, ShardingPlan
    from runner.strategy.fsdp.trainable import PlacedShards
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
class ShardSettings:
    """What is sharded, in which units, when it is gathered, and where it is kept."""

    sharding: Sharding = Sharding.FULL_SHARD
    """What is sharded, and when."""
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
        if self.wrap is Wrap.CLASSES and not self.wrap_classes:
            raise ValueError("wrap_classes=[] is empty, but wrap=classes needs class names. Name some, or use auto.")
        if self.wrap_min_params < 1:
            raise ValueError(f"wrap_min_params={self.wrap_min_params} must be at least 1.")
        for name, value in (("forward_prefetch", self.forward_prefetch), ("backward_prefetch", self.backward_prefetch)):
            if value < 0:
                raise ValueError(f"{name}={value} must not be negative. Use 0 to gather each unit when it is reached.")

    def model_checks(self) -> "Iterable[Callable[[Module], Iterable[Fault]]]":
        """Check that the model has the classes that become units."""
        from runner.strategy.fsdp.units import wrap_faults

        if asks_for_classes(self.wrap, self.wrap_classes):
            yield partial(wrap_faults, wrap=self.wrap, classes=self.wrap_classes, key="strategy")

    def place_alone(self, builder: Builder, world: World) -> "PlacedModule":
        """The plain model, where there is nobody to share it with."""
        from runner.strategy.common.placed_module import place_whole

        placed = place_whole(builder, world)
        self._units(placed.model)  # class names that match no module fail here too, not only on several devices
        return placed

    def place_shards(
        self,
        build: "Callable[[], Module]",
        builder: Builder,
        world: World,
        mesh: "DeviceMesh",
        *,
        as_stored: "AsStored | None" = None,
        apart: "Callable[[Module], Mapping[Module, Apart]] | None" = None,
    ) -> "tuple[PlacedShards, list[FSDPModule]]":
        """Build a model, shard it and, with build=rank_0, send the weights. Collective.

        Args:
            build: returns the model as it is to be sharded.
            builder: gives the loss hook and the precision.
            world: all ranks of the run.
            mesh: the ranks that share one copy of the model, after those that hold replicas if there are two axes.
            as_stored: what stands for a tensor of a parameter in checkpoints; None = the tensor itself.
            apart: the modules of the model that other ranks share than those of `mesh`; None = none.

        Returns:
            The sharded model, and its units.
        """
        # fully_shard takes half a second to import: only runs that shard a model pay for it.
        from runner.strategy.common.loss_module import LossModule
        from runner.strategy.common.named_state import unchanged
        from runner.strategy.fsdp.build_on_rank_0 import build_on_meta, full_tensors, send_shards
        from runner.strategy.fsdp.trainable import PlacedShards

        receives = self.build is Build.RANK_0 and not world.is_main
        model = build_on_meta(build) if receives else build()
        full = full_tensors(model) if self.build is Build.RANK_0 and world.is_main else {}
        root = LossModule(model, builder.loss)
        units = self.shard_module(root, model, builder, world, mesh, apart=apart(model) if apart else {})
        if self.build is Build.RANK_0:
            group = mesh.get_group(Axis.SHARD)
            send_shards(model, full, shard_group=group, world=world, offloaded=self.offload)
        placed = PlacedShards(
            root, units, builder, world, sync_buffers=self.sync_buffers, as_stored=as_stored or unchanged
        )
        return placed, units

    def shard_module(
        self,
        root: "Module",
        model: "Module",
        builder: Builder,
        world: World,
        mesh: "DeviceMesh",
        *,
        apart: "Mapping[Module, Apart] | None" = None,
    ) -> "list[FSDPModule]":
        """Shard a model inside the module that is called, in place.

        Args:
            apart: modules that are sharded in another way.

        Returns:
            The units, the root first.
        """
        from runner.model.named import Models
        from runner.strategy.fsdp.shard import prefetch, shard

        plan = self._plan(builder.precision, mesh, on_cpu=world.device.type == "cpu")
        roots = [*model.by_name.values()] if isinstance(model, Models) else [root]
        units = shard(root, self._units(model), plan, roots=roots, apart=apart or {})
        prefetch(units, forward=self.forward_prefetch, backward=self.backward_prefetch)
        return units

    def no_sync(self, units: "list[FSDPModule]", axes: Axes) -> Callable[[], AbstractContextManager[Any]]:
        """What all micro-batches of a step but the last leave out."""
        from runner.strategy.fsdp.shard import no_all_reduce, no_gradient_sync

        if not self.sync_each_round:
            return partial(no_gradient_sync, units, keep_gathered=self.sharding is not Sharding.FULL_SHARD)
        return partial(no_all_reduce, units) if axes.size([Axis.REPLICATE]) > 1 else nullcontext

    def _units(self, model: "Module") -> "Units":
        from runner.strategy.fsdp.units import units_of

        classes, min_params = self.wrap_classes, self.wrap_min_params
        return units_of(model, wrap=self.wrap, classes=classes, min_params=min_params, key="strategy")

    def _plan(self, precision: Precision, mesh: "DeviceMesh", *, on_cpu: bool) -> "ShardingPlan":
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy

        from runner.strategy.fsdp.shard import ShardingPlan

        return ShardingPlan(
            mesh=mesh,
            free_after_forward=self.sharding is Sharding.FULL_SHARD,
            param_dtype=precision.dtypes.param if self.gather is Gather.PRECISION else None,
            reduce_dtype=precision.dtypes.reduce,
            offload=CPUOffloadPolicy(pin_memory=self.pin_memory and not on_cpu) if self.offload else OffloadPolicy(),
            unused_parameters=self.unused_parameters,
        )
