"""Places a model on replicas: each is one rank with the plain model, or several that shard it as under FSDP."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from runner.protocols import Axes, Axis, Builder, Placed, Trainable, World
from runner.strategy.local_sgd.exchanges import Exchanges

if TYPE_CHECKING:
    from torch.nn import Module

    from runner.config.run_spec import RunSpec
    from runner.errors import Fault
    from runner.strategy.fsdp import FSDP
    from runner.strategy.local_sgd.trainable import Named, Outer


def replica_axes(replica: "FSDP", num_ranks: int) -> Axes:
    """One axis of replicas, and one of the ranks of each if they are several.

    Raises:
        ValueError: the shard size does not divide the number of ranks.
    """
    whole = replica.axes(num_ranks)
    names = tuple(name for name, size in zip(whole.names, whole.sizes, strict=True) if size > 1) or (Axis.REPLICATE,)
    sizes = tuple(whole.size([name]) for name in names)
    return Axes(names=names, sizes=sizes, data=names, independent=tuple({Axis.REPLICATE} & {*names}))


def replica_model_checks(replica: "FSDP", spec: "RunSpec") -> "Iterable[Callable[[Module], Iterable[Fault]]]":
    """What the model must have for its replicas to be sharded."""
    return replica.model_checks(spec) if replica.shard_size != 1 else ()


def place_replica(replica: "FSDP", builder: Builder, world: World) -> Placed:
    """The model on every replica, without an optimizer. Collective."""
    if world.axes.size([Axis.SHARD]) > 1:
        return replica.place(builder, world)
    from runner.strategy.common.placed_module import PlacedModule

    return PlacedModule(builder.build_whole_model().to(world.device), builder, world.device)


def prepare_replica(
    replica: "FSDP",
    builder: Builder,
    world: World,
    *,
    exchanges: Exchanges,
    open_outer: "Callable[[Sequence[Named], World], Outer]",
) -> Trainable:
    """The model and its optimizer on every replica. Collective.

    Args:
        replica: how one of several ranks is sharded.
        open_outer: given the trained parameters of this rank and the ranks to exchange them with, what does that.
    """
    from runner.strategy.common.module_trainable import ModuleTrainable
    from runner.strategy.common.placed_module import PlacedModule
    from runner.strategy.local_sgd.trainable import ReplicaTrainable, WarmUp
    from runner.world.replica import ReplicaWorld

    everyone, own = world.along(*world.axes.loss), world.along(Axis.SHARD)
    replicas, warm_up = world.along(Axis.REPLICATE), WarmUp(exchanges.warmup_steps)
    counted_over = (lambda: everyone if warm_up.lasts else own) if replicas.size > 1 else None
    inner: Trainable
    if own.size == 1:
        placed = PlacedModule(builder.build_whole_model().to(world.device), builder, world.device)
        inner = ModuleTrainable(
            placed,
            builder,
            world,
            reduce_found_inf=lambda found: everyone.sum(found.to(world.device)),
            counted_over=counted_over,
        )
    else:
        ranks = ReplicaWorld(world, Axis.SHARD)
        inner = replica.prepare_shards(builder, ranks, stepping=everyone, counted_over=counted_over)
    return ReplicaTrainable(inner, replicas, exchanges=exchanges, warm_up=warm_up, open_outer=open_outer)
