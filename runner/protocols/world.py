"""The ranks of a run, seen from one of them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from runner.protocols.mesh import Axes

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh


class World(Protocol):
    """The ranks of a run, seen from one of them. A single process is a world of one, with the same methods.

    Every method that is called collective must be called by all ranks in the same order.
    """

    rank: int
    size: int
    local_rank: int
    device: "torch.device"

    @property
    def is_main(self) -> bool:
        """Rank 0."""
        ...

    def sum(self, values: "Tensor") -> "Tensor":
        """Sum elementwise over ranks; the same result on every rank. Collective."""
        ...

    def start_sum(self, values: "Tensor") -> Callable[[], "Tensor"]:
        """Begin `sum` without waiting; call what is returned to have the result. Collective."""
        ...

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value, on every rank. Collective."""
        ...

    def gather_objects(self, value: Any) -> list[Any]:
        """Everyone's value in rank order, on every rank. Collective."""
        ...

    def any(self, flag: bool) -> bool:
        """True on every rank if it is on one. Collective, on the host."""
        ...

    def barrier(self) -> None:
        """Wait for all ranks. Collective."""
        ...

    def main_first(self) -> AbstractContextManager[None]:
        """Rank 0 runs the block first, the others after it. Collective."""
        ...

    def mesh(self, axes: Axes) -> "DeviceMesh":
        """The device mesh of these axes. Collective."""
        ...

    def duplicate(self) -> "World":
        """The same ranks for one thread beside the main one. Collective.

        Its host-side methods (objects, any, barrier) meet only those that other ranks call on theirs; use no others.
        """
        ...

    def close(self) -> None:
        """Leave the process group. Collective."""
        ...
