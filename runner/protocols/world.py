"""The ranks of a run, or of some axes of its mesh, from the point of view of one rank."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from runner.protocols.mesh import Axes, Axis

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh


class World(Protocol):
    """A set of ranks and their collective operations. A single process is a world of one, with the same methods.

    Every method documented as collective must be called by all ranks of this world in the same order.
    """

    rank: int
    """The rank in this world: among all ranks of a run, or along the axes passed to `along`."""
    size: int
    local_rank: int
    """The rank on its machine; the same in every world."""
    device: "torch.device"
    axes: Axes
    """The mesh of the whole run."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0 of this world."""
        ...

    def along(self, *axes: Axis) -> "World":
        """The ranks that differ from this one along these axes only, in mesh order. Collective over the run.

        An axis that the mesh does not have has size 1. The same axes return the same world.
        """
        ...

    def sum(self, values: "Tensor") -> "Tensor":
        """Sum elementwise over ranks; the same result on every rank. Collective."""
        ...

    def start_sum(self, values: "Tensor") -> Callable[[], "Tensor"]:
        """Start `sum` asynchronously; the returned function waits and returns the result. Collective."""
        ...

    def broadcast(self, values: "Tensor") -> None:
        """Overwrite the tensor with rank 0's, in place. Collective."""
        ...

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value, on every rank. Collective."""
        ...

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all ranks in rank order, on every rank. Collective."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank; the same on every rank. Collective, on the host."""
        ...

    def barrier(self) -> None:
        """Wait for all ranks. Collective."""
        ...

    def main_first(self) -> AbstractContextManager[None]:
        """Rank 0 runs the block first, then the others. Collective."""
        ...

    def mesh(self) -> "DeviceMesh":
        """The device mesh of the run's axes. Collective over the run; returns the same mesh each time."""
        ...

    def duplicate(self) -> "World":
        """The same ranks with a communicator of their own, as MPI_Comm_dup makes one. Collective over the run.

        For a background thread: its host-side methods (objects, any, barrier) only communicate with the duplicates on
        other ranks. Use no other methods.
        """
        ...

    def close(self) -> None:
        """Leave the process group. Collective over the run."""
        ...
