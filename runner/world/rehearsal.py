"""A world whose collectives do not communicate: a rank uses as much memory as in a run, but never waits for others.

So a rank may run out of memory in the middle of a step without leaving the others waiting in a collective. The values
that it computes are meaningless.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from runner.protocols import Axes, Axis, World
from runner.world.solo import SoloWorld


@final
class RehearsalWorld:
    """This rank among simulated others."""

    def __init__(
        self,
        device: torch.device,
        *,
        rank: int,
        size: int,
        local_rank: int,
        axes: Axes,
        run: "RehearsalWorld | None" = None,
    ) -> None:
        self.device = device
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.axes = axes
        self._run = self if run is None else run
        self._mesh: DeviceMesh | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0 of this world."""
        return self.rank == 0

    def along(self, *axes: Axis) -> World:
        """This rank among simulated ranks along these axes."""
        run = self._run
        group = next(ranks for ranks in self.axes.groups(axes) if run.rank in ranks)
        if len(group) == 1:
            return SoloWorld(self.device, local_rank=self.local_rank, axes=self.axes)
        return RehearsalWorld(
            self.device,
            rank=group.index(run.rank),
            size=len(group),
            local_rank=self.local_rank,
            axes=self.axes,
            run=run,
        )

    def sum(self, values: Tensor) -> Tensor:
        """A copy of this rank's own values."""
        return values.clone()

    def start_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """A copy of this rank's own values."""
        return values.clone

    def gather(self, values: Tensor) -> list[Tensor]:
        """Copies of this rank's own values, one for each rank."""
        return [values.clone() for _ in range(self.size)]

    def broadcast(self, values: Tensor, *, source: int = 0) -> None:
        """Keep this rank's own values."""

    def broadcast_object(self, value: Any, *, source: int = 0) -> Any:
        """This rank's own value."""
        return value

    def scatter(self, parts: Sequence[Tensor] | None) -> Tensor:
        """This rank's part, if it has it; else nothing."""
        return torch.empty(0, dtype=torch.uint8) if parts is None else parts[self.rank]

    def gather_objects(self, value: Any) -> list[Any]:
        """This rank's own value, repeated for each rank."""
        return [value] * self.size

    def gather_on_main(self, value: Any) -> Iterator[Any]:
        """On rank 0 its own value, repeated for each rank."""
        return iter([value] * self.size if self.is_main else [])

    def any(self, flag: bool) -> bool:
        """This rank's own flag."""
        return flag

    def barrier(self, timeout_s: float | None = None) -> None:
        """Return at once, without waiting for other ranks."""

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block at once."""
        yield

    def mesh(self) -> DeviceMesh:
        """A mesh over torch's fake process groups. Collective on first use, when all ranks create the groups."""
        import torch.testing._internal.distributed.fake_pg  # noqa: F401  importing it registers the backend

        run = self._run
        if run._mesh is None:
            names = tuple(str(name) for name in self.axes.names)
            fake: dict[int | str, Any] = dict.fromkeys(names, "fake")
            run._mesh = init_device_mesh(self.device.type, self.axes.sizes, mesh_dim_names=names, backend_override=fake)
        return run._mesh

    def duplicate(self, *, in_thread: bool = True) -> "RehearsalWorld":
        """This same world, since it does not communicate."""
        return self

    def close(self) -> None:
        """Do nothing, since there is no process group."""


def rehearsal(world: World) -> World:
    """A world for trial steps: of one rank if every rank has the full model, else of simulated ranks."""
    sizes = zip(world.axes.names, world.axes.sizes, strict=True)
    if all(size == 1 or name is Axis.REPLICATE for name, size in sizes):
        return SoloWorld(world.device, local_rank=world.local_rank)
    return RehearsalWorld(world.device, rank=world.rank, size=world.size, local_rank=world.local_rank, axes=world.axes)
