"""A world whose collectives go nowhere: what a rank does in it costs the memory of the real thing and waits for nobody.

So a rank may run out of memory in the middle of a step without leaving the others in a collective. Numbers that come of
it mean nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from runner.protocols import Axes, World
from runner.world.solo import SoloWorld


@final
class RehearsalWorld:
    """This rank, among others that are only imagined."""

    def __init__(self, world: World) -> None:
        self.rank = world.rank
        self.size = world.size
        self.local_rank = world.local_rank
        self.device = world.device
        self._mesh: DeviceMesh | None = None

    @property
    def is_main(self) -> bool:
        """As in the real world."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Its own values."""
        return values.clone()

    def start_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Its own values."""
        return values.clone

    def broadcast_object(self, value: Any) -> Any:
        """Its own value."""
        return value

    def gather_objects(self, value: Any) -> list[Any]:
        """Its own value, from everyone."""
        return [value] * self.size

    def any(self, flag: bool) -> bool:
        """Its own flag."""
        return flag

    def barrier(self) -> None:
        """Nobody to wait for."""

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Just the block."""
        yield

    def mesh(self, axes: Axes) -> DeviceMesh:
        """A mesh over torch's fake process groups. Collective the first time: all ranks make the groups together."""
        import torch.testing._internal.distributed.fake_pg  # noqa: F401  its import registers the backend

        if self._mesh is None:
            away: dict[int | str, Any] = dict.fromkeys(axes.names, "fake")
            names = axes.names
            self._mesh = init_device_mesh(self.device.type, axes.sizes, mesh_dim_names=names, backend_override=away)
        return self._mesh

    def duplicate(self) -> "RehearsalWorld":
        """Itself: nothing here meets anybody."""
        return self

    def close(self) -> None:
        """Nothing to leave."""


def rehearsal(world: World, axes: Axes) -> World:
    """A world to try things in: alone, if every rank holds the whole model; else among imagined others."""
    cut = any(size > 1 and name != REPLICATE for name, size in zip(axes.names, axes.sizes, strict=True))
    return RehearsalWorld(world) if cut else SoloWorld(world.device)


REPLICATE = "replicate"
"""The axis along which every rank has the same."""
