"""The world of a single process: every collective is the identity."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from runner.errors import RankError
from runner.protocols import Axes, Axis
from runner.protocols.mesh import ALONE


@final
class SoloWorld:
    """A single rank, without a process group."""

    rank = 0
    size = 1
    is_main = True

    def __init__(self, device: torch.device, *, local_rank: int = 0, axes: Axes = ALONE) -> None:
        self.device = device
        self.local_rank = local_rank
        self.axes = axes

    def along(self, *axes: Axis) -> "SoloWorld":
        """This world, whatever the axes."""
        return self

    def sum(self, values: Tensor) -> Tensor:
        """Return the values themselves, not a copy."""
        return values

    def start_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """The values themselves, without waiting."""
        return lambda: values

    def gather(self, values: Tensor) -> list[Tensor]:
        """A list of the one tensor."""
        return [values]

    def broadcast(self, values: Tensor, *, source: int = 0) -> None:
        """Keep the values, which are rank 0's."""

    def broadcast_object(self, value: Any, *, source: int = 0) -> Any:
        """Return the value itself."""
        return value

    def scatter(self, parts: Sequence[Tensor] | None) -> Tensor:
        """The one part."""
        assert parts is not None
        return parts[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """A list of the one value."""
        return [value]

    def gather_on_main(self, value: Any) -> Iterator[Any]:
        """The one value."""
        return iter([value])

    def any(self, flag: bool) -> bool:
        """Return the flag itself."""
        return flag

    def barrier(self, timeout_s: float | None = None) -> None:
        """Return at once, as there is no other rank."""

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block at once."""
        yield

    def mesh(self) -> DeviceMesh:
        """Raise, since a mesh needs a process group.

        Raises:
            RankError: always.
        """
        raise RankError(
            f"the strategy requires a mesh {self.axes.names}, but the run has only one process. "
            "Use hardware.processes=2 or more."
        )

    def duplicate(self, *, in_thread: bool = True) -> "SoloWorld":
        """This same world, since it does not communicate."""
        return self

    def close(self) -> None:
        """Do nothing, since there is no process group."""
