"""The world of a single process: every collective is the identity."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from runner.errors import RankError
from runner.protocols import Axes


@final
class SoloWorld:
    """One rank; no process group exists and none is needed."""

    rank = 0
    size = 1
    local_rank = 0
    is_main = True

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def sum(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values

    def start_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """The values themselves, already there."""
        return lambda: values

    def broadcast_object(self, value: Any) -> Any:
        """The value itself."""
        return value

    def gather_objects(self, value: Any) -> list[Any]:
        """A list of the one value."""
        return [value]

    def any(self, flag: bool) -> bool:
        """The flag itself."""
        return flag

    def barrier(self) -> None:
        """Nobody to wait for."""

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Just the block."""
        yield

    def mesh(self, axes: Axes) -> DeviceMesh:
        """A mesh needs a process group.

        Raises:
            RankError: always.
        """
        raise RankError(
            f"a mesh {axes.names} was asked for in a world of one process. Use hardware.processes=2 or more."
        )

    def duplicate(self) -> "SoloWorld":
        """Itself: nothing here meets anybody."""
        return self

    def close(self) -> None:
        """Nothing to leave."""
