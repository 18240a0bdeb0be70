"""The same ranks with another mesh, for a model whose strategy is not the run's."""

from runner.protocols import Axes, World
from runner.world.group import GroupWorld
from runner.world.rehearsal import RehearsalWorld
from runner.world.solo import SoloWorld

__all__ = ["with_axes"]


def with_axes(world: World, axes: Axes) -> World:
    """All ranks of a run, with other axes. Collective.

    Raises:
        TypeError: this world is a part of a run, which has no mesh of its own.
    """
    if axes == world.axes:
        return world
    if isinstance(world, GroupWorld):
        return world.with_axes(axes)
    if isinstance(world, RehearsalWorld):
        return RehearsalWorld(world.device, rank=world.rank, size=world.size, local_rank=world.local_rank, axes=axes)
    if isinstance(world, SoloWorld):
        return SoloWorld(world.device, local_rank=world.local_rank, axes=axes)
    raise TypeError(f"a {type(world).__name__} has no mesh of its own")
