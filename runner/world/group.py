"""The world of several processes: torch.distributed behind the names that the engine uses."""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from runner.protocols import Axes, Hardware, World
from runner.world.solo import SoloWorld


@final
class GroupWorld:
    """One of many ranks. Host-side agreement runs on gloo, so that it never waits for a device."""

    def __init__(self, device: torch.device, backend: str, *, local_rank: int, timeout: timedelta) -> None:
        dist.init_process_group(backend, timeout=timeout)
        self.device = device
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.local_rank = local_rank
        self._timeout = timeout
        self._host = dist.group.WORLD if backend == "gloo" else dist.new_group(backend="gloo", timeout=timeout)

    @property
    def is_main(self) -> bool:
        """Rank 0."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum elementwise over ranks, into a new tensor. Collective."""
        total = values.clone()
        dist.all_reduce(total)
        return total

    def start_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin `sum` without waiting for it. Collective."""
        total = values.clone()
        work = dist.all_reduce(total, async_op=True)

        def finish() -> Tensor:
            work.wait()
            return total

        return finish

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value, on every rank. Collective; pickles between our own processes only."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._host)
        return box[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Everyone's value in rank order. Collective; pickles between our own processes only."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._host)
        return values

    def any(self, flag: bool) -> bool:
        """True on every rank if it is on one. Collective, on the host."""
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._host)
        return bool(votes.item())

    def barrier(self) -> None:
        """Wait for all ranks, on the host. Collective."""
        dist.barrier(group=self._host)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 runs the block first, the others after it. Collective."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def mesh(self, axes: Axes) -> DeviceMesh:
        """The device mesh of these axes. Collective."""
        return init_device_mesh(self.device.type, axes.sizes, mesh_dim_names=axes.names)

    def duplicate(self) -> "GroupWorld":
        """The same ranks, their host-side agreement on a group of its own. Collective."""
        other = copy.copy(self)
        other._host = dist.new_group(backend="gloo", timeout=self._timeout)
        return other

    def close(self) -> None:
        """Leave the process group. Collective; nothing that hooks into it (a DDP model) may be alive any more.

        A reducer's destructor that runs after this joins a gloo thread and has hung.
        """
        dist.destroy_process_group()


def open_world(hardware: Hardware, *, timeout: timedelta) -> World:
    """The world that torch's rendezvous variables describe: many ranks where they are set, one where not."""
    if "RANK" not in os.environ:
        return SoloWorld(hardware.claim(0))
    local_rank = int(os.environ["LOCAL_RANK"])
    return GroupWorld(hardware.claim(local_rank), hardware.backend, local_rank=local_rank, timeout=timeout)
