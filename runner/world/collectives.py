"""The ranks of a run as hooks and callbacks see them: collectives on nested tensors, the same on one process."""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, final

import torch
from torch import Tensor

from runner.errors import HookError
from runner.protocols import World
from runner.world.agreement import agree
from runner.world.gathering import Gathered, gather_rows, gather_rows_with_grad, padded
from runner.world.nested import map_tensors

__all__ = ["Collectives", "Gathered", "Trigger"]

logger = logging.getLogger(__name__)
REDUCTIONS = ("sum", "mean", "max", "min")
Function = Callable[..., Any]


@final
class Collectives:
    """The ranks of a run. A hook, or a method of a callback's listener, gets them by a parameter named `world`.

    Every rank must call the same methods in the same order, unless a method says otherwise. Values are tensors by
    themselves or nested in dicts, lists, tuples, named tuples and dataclasses. Before data is exchanged, the ranks tell
    each other what they are about to do: those that disagree raise RankError, which names what each of them brings, and
    from where. On a single process, every method returns what one rank alone would get.

    In a loss hook, a rank may have no item of its own left to read: its micro-batch is a *filler*, which the step does
    not count. What such a rank brings to `gather`, `gather_with_grad` and `reduce` is left out.
    """

    def __init__(self, world: World, readers: World, *, counts: bool = True) -> None:
        """Of one rank.

        Args:
            world: all ranks of the run.
            readers: those that read different items.
            counts: False for a rank with a filler.
        """
        self._world = world
        self._readers = readers
        self._counts = counts
        self.rank = world.rank
        self.size = world.size
        self.local_rank = world.local_rank
        """The rank on its machine."""
        self.device = world.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def is_local_main(self) -> bool:
        """Whether this is the first rank of its machine."""
        return self.local_rank == 0

    @property
    def is_last(self) -> bool:
        """Whether this is the last rank."""
        return self.rank == self.size - 1

    def gather(self, values: Any) -> Any:
        """The rows of all ranks in rank order, on every rank, without a gradient.

        Args:
            values: tensors [n, ...]; n may differ by rank. A scalar is a row of its own.
        """
        return gather_rows(self._world, values, counts=self._counts)

    def gather_with_grad(self, values: Any) -> Gathered:
        """The rows of all ranks that read different items, with gradients that flow back to the rank of each row.

        For losses that compare the items of a batch with each other. If every rank returns the loss summed over its own
        rows, the step is that of one process with all of them.

        Args:
            values: tensors [n, ...], all with the same n, which may differ by rank.

        Returns:
            The gathered values, and which of their rows are this rank's own. On a rank with a filler, its rows follow
            those that count, for this rank only.
        """
        return gather_rows_with_grad(self._readers, values, counts=self._counts)

    def gather_objects(self, value: Any) -> list[Any]:
        """The objects of all ranks in rank order, on every rank; pickled, between the processes of this run only."""
        agree(self._world, "gather_objects", None, same=_nothing)
        return self._world.gather_objects(value)

    def reduce(self, values: Any, reduction: str = "sum") -> Any:
        """Combine elementwise over ranks, without a gradient; the same result on every rank.

        Args:
            values: tensors of equal shapes.
            reduction: sum, mean, max or min.
        """
        if reduction not in REDUCTIONS:
            raise HookError(f"reduce(…, {reduction!r}) is not known. Use one of {', '.join(REDUCTIONS)}.")
        calls = agree(self._world, f"reduce({reduction})", values, same=_whole, counts=self._counts)
        counted = [rank for rank, call in enumerate(calls) if call.counts] or [*range(self.size)]

        def combine(path: str, tensor: Tensor) -> Tensor:
            tensor = tensor.detach()
            if reduction in ("sum", "mean"):
                total = self._world.sum(tensor if self.rank in counted else torch.zeros_like(tensor))
                return total / len(counted) if reduction == "mean" else total
            stacked = torch.stack(self._world.gather(tensor))[counted]  # what ranks compare so is small
            return stacked.amax(0) if reduction == "max" else stacked.amin(0)

        return map_tensors(combine, values)

    def broadcast(self, values: Any, source: int = 0) -> Any:
        """The values of rank `source`, on every rank.

        Args:
            values: tensors of equal shapes on all ranks; those of other ranks are left as they are.
        """
        agree(self._world, f"broadcast({self._rank_of(source)})", values, same=_whole)

        def receive(path: str, tensor: Tensor) -> Tensor:
            received = tensor.detach().clone()
            self._world.broadcast(received, source=self._rank_of(source))
            return received

        return map_tensors(receive, values)

    def broadcast_object(self, value: Any, source: int = 0) -> Any:
        """The object of rank `source`, on every rank; pickled, between the processes of this run only."""
        agree(self._world, f"broadcast_object({self._rank_of(source)})", None, same=_nothing)
        return self._world.broadcast_object(value, source=self._rank_of(source))

    def pad(self, values: Any, *, dim: int = 0, value: float = 0, first: bool = False) -> Any:
        """Pad a dimension to the longest of all ranks, so that shapes are equal.

        Args:
            dim: dimension; negative ones count from the last.
            value: to pad with.
            first: pad at the beginning instead of the end.
        """
        calls = agree(self._world, f"pad(dim={dim})", values, same=len)
        longest = {
            brought.path: max(call.tensors[number].shape[dim] for call in calls)
            for number, brought in enumerate(calls[0].tensors)
            if brought.shape
        }

        def fill(path: str, tensor: Tensor) -> Tensor:
            return padded(tensor, longest[path], dim=dim, value=value, first=first) if tensor.ndim else tensor

        return map_tensors(fill, values)

    def barrier(self, timeout_s: float | None = None) -> None:
        """Wait until every rank is here.

        Args:
            timeout_s: seconds to wait; None = until `hardware.timeout_s` ends the run.

        Raises:
            RankError: the time is over; rank 0 names the ranks that are missing.
        """
        if timeout_s is None:
            agree(self._world, "barrier", None, same=_nothing)  # which waits for all
        else:
            self._world.barrier(timeout_s)

    def main_first(self) -> AbstractContextManager[None]:
        """A context: rank 0 runs the block first, then the others."""
        return self._first(is_first=self.is_main)

    def local_main_first(self) -> AbstractContextManager[None]:
        """A context: the first rank of each machine runs the block first, then the others."""
        return self._first(is_first=self.is_local_main)

    def on_main(self, function: Function) -> Function:
        """A decorator: call the function on rank 0 only; other ranks get None."""
        return self.on_rank(0)(function)

    def on_local_main(self, function: Function) -> Function:
        """A decorator: call the function on the first rank of each machine only."""
        return self.on_local_rank(0)(function)

    def on_last(self, function: Function) -> Function:
        """A decorator: call the function on the last rank only."""
        return self.on_rank(-1)(function)

    def on_rank(self, rank: int) -> Callable[[Function], Function]:
        """A decorator: call the function on this rank only; -1 is the last."""
        wanted = self._rank_of(rank)
        return lambda function: function if self.rank == wanted else _nothing_done(function)

    def on_local_rank(self, rank: int) -> Callable[[Function], Function]:
        """A decorator: call the function on this rank of each machine only."""
        return lambda function: function if self.local_rank == rank else _nothing_done(function)

    def trigger(self) -> "Trigger":
        """A flag that any rank may set, and that all ranks check."""
        return Trigger(self._world)

    def log(self, message: str) -> None:
        """Log on rank 0, to the terminal and its log file. Not collective."""
        if self.is_main:
            logger.info("%s", message)

    def log_all(self, message: str) -> None:
        """Log on this rank: to its log file, and on rank 0 to the terminal as well. Not collective."""
        logger.info("%s", message)

    def log_in_order(self, message: str) -> None:
        """Log the messages of all ranks on rank 0, in rank order."""
        for rank, one in enumerate(self.gather_objects(message)):
            self.log(f"rank {rank}: {one}")

    def _rank_of(self, rank: int) -> int:
        if not -self.size <= rank < self.size:
            raise HookError(f"there is no rank {rank}: the run has ranks 0 to {self.size - 1}.")
        return rank % self.size

    @contextmanager
    def _first(self, *, is_first: bool) -> Iterator[None]:
        if not is_first:
            self.barrier()
        yield
        if is_first:
            self.barrier()


@final
class Trigger:
    """A flag that any rank may set, and that all ranks check together."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._is_set = False

    def set(self) -> None:
        """Set the flag on this rank. Not collective."""
        self._is_set = True

    def check(self) -> bool:
        """Whether any rank has set it since the last check; clears it. Collective."""
        agree(self._world, "Trigger.check", None, same=_nothing)
        is_set, self._is_set = self._is_set, False
        return self._world.any(is_set)


def _whole(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape


def _nothing(shape: tuple[int, ...]) -> None:
    return None


def _nothing_done(function: Function) -> Function:
    @functools.wraps(function)
    def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    return nothing
