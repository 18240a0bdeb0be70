"""The world of several processes: torch.distributed behind the `World` protocol."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, cast, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from runner.errors import RankError
from runner.protocols import Axes, Axis, World
from runner.world.activity import UNREAD, Activity, Phase
from runner.world.meeting import meet
from runner.world.objects import gather_pickled
from runner.world.scattering import scatter_bytes
from runner.world.solo import SoloWorld


@final
class GroupWorld:
    """Some or all ranks of a run. Host-side communication runs on gloo, so that it never waits for a device."""

    def __init__(
        self,
        device: torch.device,
        *,
        axes: Axes,
        local_rank: int,
        group: dist.ProcessGroup,
        host_group: dist.ProcessGroup,
        run: "_Run",
        activity: Activity,
    ) -> None:
        self.device = device
        self.axes = axes
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.local_rank = local_rank
        self.group = group
        self._host = host_group
        self._run = run
        self._activity = activity

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0 of this world."""
        return self.rank == 0

    def along(self, *axes: Axis) -> World:
        """The ranks that differ from this one along these axes only. Collective over the run on first use."""
        return self._run.along(axes)

    def sum(self, values: Tensor) -> Tensor:
        """Sum elementwise over ranks, into a new tensor. Collective."""
        total = values.clone()
        with self._waiting():
            dist.all_reduce(total, group=self.group)
        return total

    def start_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Start `sum` asynchronously. Collective."""
        total = values.clone()
        work = dist.all_reduce(total, group=self.group, async_op=True)

        def finish() -> Tensor:
            with self._waiting():
                work.wait()
            return total

        return finish

    def gather(self, values: Tensor) -> list[Tensor]:
        """The tensors of all ranks, of equal shape and contiguous, in rank order. Collective."""
        gathered = [torch.empty_like(values) for _ in range(self.size)]
        with self._waiting():
            dist.all_gather(gathered, values, group=self.group)
        return gathered

    def broadcast(self, values: Tensor, *, source: int = 0) -> None:
        """Overwrite the tensor with that of rank `source`, in place. Collective."""
        with self._waiting():
            dist.broadcast(values, group=self.group, group_src=source)

    def broadcast_object(self, value: Any, *, source: int = 0) -> Any:
        """The value of rank `source`, on every rank. Collective; pickled, between processes of this run only."""
        box = [value]
        with self._waiting():
            dist.broadcast_object_list(box, group=self._host, group_src=source)
        return box[0]

    def scatter(self, parts: Sequence[Tensor] | None) -> Tensor:
        """This rank's part of those that rank 0 brings. Collective, on the host."""
        with self._waiting():
            return scatter_bytes(parts, group=self._host)

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all ranks in rank order. Collective; pickled, between processes of this run only."""
        with self._waiting():
            return gather_pickled(value, group=self._host)

    def gather_on_main(self, value: Any) -> Iterator[Any]:
        """The values of all ranks, one at a time, on rank 0. Collective; pickled, between this run's processes only."""
        if self.is_main:
            return self._received(value)
        with self._waiting():
            dist.send_object_list([value], group=self._host, group_dst=0)
        return iter(())

    def _received(self, own: Any) -> Iterator[Any]:
        yield own
        for source in range(1, self.size):
            box: list[Any] = [None]
            with self._waiting():
                dist.recv_object_list(box, group=self._host, group_src=source)
            yield box.pop()

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank. Collective, on the host."""
        votes = torch.tensor(int(flag))
        with self._waiting():
            dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._host)
        return bool(votes.item())

    def barrier(self, timeout_s: float | None = None) -> None:
        """Wait for all ranks, on the host. Collective."""
        with self._waiting():
            if timeout_s is None:
                dist.barrier(group=self._host)
                return
            try:
                dist.monitored_barrier(self._host, timedelta(seconds=timeout_s), wait_all_ranks=True)
            except RuntimeError as error:  # torch's, of a timeout
                told = f"after {timeout_s:g} s, not every rank had reached the barrier. Rank {self.rank} says: {error}"
                raise RankError(told) from error

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 runs the block first, then the others. Collective."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def mesh(self) -> DeviceMesh:
        """The device mesh of the run's axes. Collective over the run on first use."""
        return self._run.mesh()

    def duplicate(self, *, in_thread: bool = True) -> "GroupWorld":
        """The same ranks with a new host-side group. Collective over the run."""
        return self._run.duplicate(self, UNREAD if in_thread else self._activity)

    def with_axes(self, axes: Axes) -> "GroupWorld":
        """All ranks of the run, with another mesh. Collective over the run."""
        return self._run.with_axes(axes).world

    def _waiting(self) -> AbstractContextManager[None]:
        return self._activity.during(Phase.WAITING)

    def close(self) -> None:
        """Destroy the process groups. Collective; objects that use them (a DDP model) must have been freed before.

        A reducer's destructor that runs after this joins a gloo thread, and has been seen to hang.
        """
        dist.destroy_process_group()
        self._run.release()


@final
class _Run:
    """Shared by the worlds of one run: its mesh and the groups of ranks along its axes, each created once."""

    def __init__(
        self,
        device: torch.device,
        *,
        axes: Axes,
        backend: str,
        local_rank: int,
        timeout: timedelta,
        activity: Activity,
    ) -> None:
        self.timeout = timeout
        self._activity = activity
        self._device = device
        self._axes = axes
        self._backend = backend
        self._local_rank = local_rank
        self._mesh: DeviceMesh | None = None
        default_group = dist.group.WORLD
        assert default_group is not None
        host = default_group if backend == "gloo" else dist.new_group(backend="gloo", timeout=timeout)
        self.world = self._world(default_group, host, activity)
        self._along: dict[frozenset[Axis], World] = {}

    def along(self, axes: Sequence[Axis]) -> World:
        sizes = zip(self._axes.names, self._axes.sizes, strict=True)
        key = frozenset(name for name, size in sizes if name in axes and size > 1)
        if key not in self._along:
            self._along[key] = self._create(key)
        return self._along[key]

    def mesh(self) -> DeviceMesh:
        if self._mesh is None:
            names = tuple(str(name) for name in self._axes.names)
            self._mesh = init_device_mesh(self._device.type, self._axes.sizes, mesh_dim_names=names)
        return self._mesh

    def with_axes(self, axes: Axes) -> "_Run":
        return _Run(
            self._device,
            axes=axes,
            backend=self._backend,
            local_rank=self._local_rank,
            timeout=self.timeout,
            activity=self._activity,
        )

    def duplicate(self, world: GroupWorld, activity: Activity) -> GroupWorld:
        key = next((axes for axes, created in self._along.items() if created is world), frozenset(self._axes.names))
        return self._world(world.group, self._subgroup(key, backend="gloo"), activity)

    def release(self) -> None:
        """Let go of all groups, which ends their threads: one that outlives the interpreter may abort the process."""
        worlds = {id(one): one for one in (self.world, *self._along.values()) if isinstance(one, GroupWorld)}
        for world in worlds.values():
            del world.group, world._host
        self._along.clear()
        self._mesh = None

    def _create(self, axes: frozenset[Axis]) -> World:
        size = self._axes.size(axes)
        if size == 1:
            return SoloWorld(self._device, local_rank=self._local_rank, axes=self._axes)
        if size == self.world.size:
            return self.world
        group = self._subgroup(axes, backend=self._backend)
        host = group if self._backend == "gloo" else self._subgroup(axes, backend="gloo")
        return self._world(group, host, self._activity)

    def _subgroup(self, axes: frozenset[Axis], *, backend: str) -> dist.ProcessGroup:
        """Create this rank's group along these axes. All ranks create all groups in the same order."""
        groups = self._axes.groups(axes)
        new_groups: Any = dist.new_subgroups_by_enumeration
        group, _ = new_groups(groups, timeout=self.timeout, backend=backend)
        return cast("dist.ProcessGroup", group)

    def _world(self, group: dist.ProcessGroup, host: dist.ProcessGroup, activity: Activity) -> GroupWorld:
        return GroupWorld(
            self._device,
            axes=self._axes,
            local_rank=self._local_rank,
            group=group,
            host_group=host,
            run=self,
            activity=activity,
        )


def join_group(
    device: torch.device,
    *,
    axes: Axes,
    backend: str,
    local_rank: int,
    timeout: timedelta,
    activity: Activity = UNREAD,
) -> GroupWorld:
    """Join the process group that torch's rendezvous variables describe. Collective.

    Args:
        device: of this rank.
        axes: the mesh of all ranks.
        backend: of collectives on the device.
        local_rank: on this machine.
        timeout: of every collective.
        activity: is told when this rank waits for others.
    """
    with activity.during(Phase.WAITING):
        meet(backend, timeout=timeout)
    run = _Run(device, axes=axes, backend=backend, local_rank=local_rank, timeout=timeout, activity=activity)
    return run.world
