"""Strategies whose replicas take steps of their own: each one rank with the plain model, or several that shard it."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from runner.errors import Fault
from runner.protocols import Axes, Axis, Builder, Placed, Trainable, World
from runner.strategy.local_sgd.exchanges import Exchanges

if TYPE_CHECKING:
    from torch.nn import Module

    from runner.config.run_spec import RunSpec
    from runner.strategy.fsdp import FSDP
    from runner.strategy.local_sgd.trainable import Named, Outer


class OfReplicas:
    """What such strategies share; an option adds what replicas do when they exchange their weights. A base class."""

    if TYPE_CHECKING:  # fields of the option
        exchanges: Exchanges
        replica: FSDP

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """No faults: any number of replicas works, and a single one, too."""
        return ()

    def model_checks(self, spec: "RunSpec") -> "Iterable[Callable[[Module], Iterable[Fault]]]":
        """Check that the model has the classes that become units, if replicas are sharded."""
        return self.replica.model_checks(spec) if self.replica.shard_size != 1 else ()

    def axes(self, num_ranks: int) -> Axes:
        """One axis of replicas, and one of the ranks of each if they are several.

        Raises:
            ValueError: the shard size does not divide the number of ranks.
        """
        whole = self.replica.axes(num_ranks)
        sizes = zip(whole.names, whole.sizes, strict=True)
        names = tuple(name for name, size in sizes if size > 1) or (Axis.REPLICATE,)
        independent = tuple({Axis.REPLICATE} & {*names})
        return Axes(names=names, sizes=tuple(whole.size([name]) for name in names), data=names, independent=independent)

    def place(self, builder: Builder, world: World) -> Placed:
        """The model on every replica, without an optimizer. Collective."""
        if world.axes.size([Axis.SHARD]) > 1:
            return self.replica.place(builder, world)
        from runner.strategy.common.placed_module import place_whole

        return place_whole(builder, world)

    def _prepare(
        self, builder: Builder, world: World, open_outer: "Callable[[Sequence[Named], World], Outer]"
    ) -> Trainable:
        """The model and its optimizer on every replica. Collective.

        Args:
            open_outer: given the trained parameters of this rank and the ranks to exchange them with, what does that.
        """
        from runner.strategy.common.gradients import WHOLE
        from runner.strategy.common.module_trainable import ModuleTrainable
        from runner.strategy.common.placed_module import place_whole
        from runner.strategy.local_sgd.trainable import ReplicaTrainable, WarmUp
        from runner.world.replica import ReplicaWorld

        everyone, own = world.along(*world.axes.loss), world.along(Axis.SHARD)
        replicas, warm_up = world.along(Axis.REPLICATE), WarmUp(self.exchanges.warmup_steps)
        counted_over = (lambda: everyone if warm_up.lasts else own) if replicas.size > 1 else None
        inner: Trainable
        if own.size == 1:
            stepping = WHOLE._replace(found_inf=lambda found: everyone.sum(found.to(world.device)))
            placed = place_whole(builder, world)
            inner = ModuleTrainable(placed, builder, world, gradients=stepping, counted_over=counted_over)
        else:
            ranks = ReplicaWorld(world, Axis.SHARD)
            inner = self.replica.prepare_shards(builder, ranks, stepping=everyone, counted_over=counted_over)
        return ReplicaTrainable(inner, replicas, exchanges=self.exchanges, warm_up=warm_up, open_outer=open_outer)
