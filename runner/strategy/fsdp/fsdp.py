"""Fully sharded data parallel by torch's fully_shard: over all ranks, or inside groups that are replicas (HSDP)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from runner.config.sections import flattened
from runner.errors import Fault
from runner.protocols import Axes, Axis, Builder, Trainable, World
from runner.strategy.fsdp.settings import ShardSettings

if TYPE_CHECKING:
    from torch.nn import Module

    from runner.config.run_spec import RunSpec
    from runner.strategy.common.placed_module import PlacedModule
    from runner.strategy.fsdp.trainable import PlacedShards, ShardedTrainable


@final
@dataclass(frozen=True, kw_only=True)
class FSDP:
    """Every rank holds a shard of each parameter, of its gradient and of its optimizer state."""

    shard_size: int | None = None
    """Ranks that share one copy of the model; null = all. Groups of this size are replicas of each other."""
    settings: ShardSettings = flattened(ShardSettings)
    """What is sharded, in which units, and when."""

    def __post_init__(self) -> None:
        if self.shard_size is not None and self.shard_size < 1:
            raise ValueError(f"shard_size={self.shard_size} must be at least 1. Use null for all ranks.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Report a shard size of 1; `axes` checks that the shard size divides the number of ranks."""
        if self.shard_size == 1 and spec.world_size > 1:
            rule = "1 shards nothing. Use strategy=ddp instead, or a larger size."
            yield Fault(key="strategy.shard_size", message=rule)

    def model_checks(self, spec: "RunSpec") -> "Iterable[Callable[[Module], Iterable[Fault]]]":
        """Check that the model has the classes that become units."""
        return self.settings.model_checks()

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
        if world.size == 1:
            return self.settings.place_alone(builder, world)
        return self.settings.place_shards(builder.build_whole_model, builder, world, world.mesh())[0]

    def prepare(self, builder: Builder, world: World) -> Trainable:
        """Shard the model, then build the optimizer over the shards; in a world of one, train the plain model."""
        from runner.strategy.common.module_trainable import ModuleTrainable

        if world.size == 1:
            return ModuleTrainable(self.settings.place_alone(builder, world), builder, world)
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

        placed, units = self.settings.place_shards(builder.build_whole_model, builder, world, world.mesh())
        no_sync = self.settings.no_sync(units, world.axes)
        return ShardedTrainable(placed, builder, world, no_sync=no_sync, stepping=stepping, counted_over=counted_over)
