"""The ranks of a run, or of some axes of its mesh, from the point of view of one rank."""

from collections.abc import Callable, Iterator, Sequence
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

    def gather(self, values: "Tensor") -> "list[Tensor]":
        """The tensors of all ranks, of equal shape and contiguous, in rank order. Collective."""
        ...

    def broadcast(self, values: "Tensor", *, source: int = 0) -> None:
        """Overwrite the tensor with that of rank `source`, in place. Collective."""
        ...

    def broadcast_object(self, value: Any, *, source: int = 0) -> Any:
        """The value of rank `source`, on every rank. Collective."""
        ...

    def scatter(self, parts: "Sequence[Tensor] | None") -> "Tensor":
        """This rank's part of those that rank 0 brings. Collective, on the host.

        Args:
            parts: bytes for each rank, uint8 [n], where n may differ; None on other ranks.
        """
        ...

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all ranks in rank order, on every rank. Collective."""
        ...

    def gather_on_main(self, value: Any) -> Iterator[Any]:
        """The values of all ranks in rank order, on rank 0 only, which holds one of them at a time. Collective.

        Returns:
            On rank 0 an iterator, which must be read to its end; on other ranks an empty one.
        """
        ...

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank; the same on every rank. Collective, on the host."""
        ...

    def barrier(self, timeout_s: float | None = None) -> None:
        """Wait for all ranks. Collective.

        Args:
            timeout_s: seconds to wait; None = as long as in any collective.

        Raises:
            RankError: the time is over; on rank 0 the message names the ranks that are missing.
        """
        ...

    def main_first(self) -> AbstractContextManager[None]:
        """Rank 0 runs the block first, then the others. Collective."""
        ...

    def mesh(self) -> "DeviceMesh":
        """The device mesh of the run's axes. Collective over the run; returns the same mesh each time."""
        ...

    def duplicate(self, *, in_thread: bool = True) -> "World":
        """The same ranks with a communicator of their own, as MPI_Comm_dup makes one. Collective over the run.

        Its host-side methods (objects, any, barrier) only communicate with the duplicates on other ranks; the others
        use the communicator of the original.

        Args:
            in_thread: it is for a background thread, which uses the host-side methods only, and whose waiting is not
                that of the rank.
        """
        ...

    def close(self) -> None:
        """Leave the process group. Collective over the run."""
        ...
