"""The collectives that a run's hooks and listeners are given, if any of them asks for them."""

from functools import cached_property
from typing import final

from runner.protocols import World
from runner.world.collectives import Collectives

__all__ = ["HookRanks"]


@final
class HookRanks:
    """Made when the first asks, which is at the same place on every rank, and the same for all that ask."""

    def __init__(self, world: World) -> None:
        """Nothing is made yet.

        Args:
            world: all ranks of the run.
        """
        self._world = world

    @cached_property
    def all(self) -> Collectives:
        """All ranks. Collective on first use."""
        return Collectives(*self._worlds)

    @cached_property
    def filler(self) -> Collectives:
        """All ranks, for a rank whose micro-batch does not count. Collective on first use."""
        return Collectives(*self._worlds, counts=False)

    @cached_property
    def _worlds(self) -> tuple[World, World]:
        """All ranks, and those that read different items.

        They communicate beside the engine: a collective that one rank leaves out never meets one of the engine's.
        """
        world, readers = self._world, self._world.along(*self._world.axes.data)
        own = world.duplicate(in_thread=False)
        return own, own if readers.size == world.size else readers.duplicate(in_thread=False)
