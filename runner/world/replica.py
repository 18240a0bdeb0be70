"""The ranks of one replica as a world of their own, for code that places a model on all the ranks that it knows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, final

from runner.protocols import Axes, Axis, World

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh


@final
class ReplicaWorld:
    """The ranks that differ from this one along some axes only; its mesh has these axes and no other."""

    def __init__(self, run: World, *axes: Axis) -> None:
        """Take part of a run. Collective over the run.

        Args:
            run: all of its ranks.
            axes: those of the replica.
        """
        self._run = run
        self._group = group = run.along(*axes)
        whole = run.axes
        names = tuple(name for name in whole.names if name in axes)
        self.axes = Axes(
            names=names,
            sizes=tuple(whole.size([name]) for name in names),
            data=tuple(name for name in whole.data if name in axes),
            partial=tuple(name for name in whole.partial if name in axes),
        )
        self.rank = group.rank
        self.size = group.size
        self.local_rank = group.local_rank
        self.device = group.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0 of the replica."""
        return self.rank == 0

    def along(self, *axes: Axis) -> World:
        """The ranks of the replica that differ from this one along these axes only. Collective over the run."""
        return self._run.along(*(axis for axis in axes if axis in self.axes.names))

    def sum(self, values: "Tensor") -> "Tensor":
        """Sum elementwise over the replica. Collective."""
        return self._group.sum(values)

    def start_sum(self, values: "Tensor") -> "Callable[[], Tensor]":
        """Start `sum` asynchronously. Collective."""
        return self._group.start_sum(values)

    def gather(self, values: "Tensor") -> "list[Tensor]":
        """The tensors of all ranks of the replica. Collective."""
        return self._group.gather(values)

    def broadcast(self, values: "Tensor", *, source: int = 0) -> None:
        """Overwrite the tensor with that of the replica's rank `source`. Collective."""
        self._group.broadcast(values, source=source)

    def broadcast_object(self, value: Any, *, source: int = 0) -> Any:
        """The value of the replica's rank `source`. Collective."""
        return self._group.broadcast_object(value, source=source)

    def scatter(self, parts: "Sequence[Tensor] | None") -> "Tensor":
        """This rank's part of those that the replica's rank 0 brings. Collective."""
        return self._group.scatter(parts)

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all ranks of the replica. Collective."""
        return self._group.gather_objects(value)

    def gather_on_main(self, value: Any) -> Iterator[Any]:
        """The values of all ranks of the replica, one at a time, on its rank 0. Collective."""
        return self._group.gather_on_main(value)

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank of the replica. Collective."""
        return self._group.any(flag)

    def barrier(self, timeout_s: float | None = None) -> None:
        """Wait for the ranks of the replica. Collective."""
        self._group.barrier(timeout_s)

    def main_first(self) -> AbstractContextManager[None]:
        """The replica's rank 0 runs the block first, then its others. Collective."""
        return self._group.main_first()

    def mesh(self) -> "DeviceMesh":
        """The part of the run's mesh that the replica is. Collective over the run."""
        return self._run.mesh()[tuple(str(name) for name in self.axes.names)]

    def duplicate(self, *, in_thread: bool = True) -> World:
        """The same ranks with a communicator of their own; it has the axes of the run. Collective over the run."""
        return self._group.duplicate(in_thread=in_thread)

    def close(self) -> None:
        """Do nothing: the process group is the run's."""
