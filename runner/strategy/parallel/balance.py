"""Which rank has which positions of a sequence: in order between layers, and balanced for causal attention.

Between layers, rank r of n has the r-th of n consecutive parts of equal length, as in a DTensor. Under a causal mask
the last of them would have the most work: a position attends to all before it. So for attention the sequence is cut
into 2 n parts, and rank r takes the r-th from the front and the r-th from the back, as torch's ring attention expects
them. For two ranks:

    in order        0 1 | 2 3
    balanced        0 3 | 1 2

A sequence that does not divide is lengthened at its end; no position before the end attends to what is added there.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed._functional_collectives import all_to_all_single_autograd


class Exchange(NamedTuple):
    """What a rank sends and receives when a sequence that is in order becomes a balanced one."""

    own: Tensor
    """The rows that it sends, by their index among its rows in order: those for rank 0 first."""
    balanced: Tensor
    """The rows that it receives, by their index among its balanced rows: those of rank 0 first."""
    num_sent: list[int]
    """Rows that it sends to each rank."""
    num_received: list[int]
    num_own: int
    """Its rows in order."""
    num_balanced: int
    """Its balanced rows, with those that lengthen the sequence."""


def in_order(length: int, ranks: int, rank: int) -> range:
    """The positions that a rank has between layers; fewer on the last ranks, or none."""
    size = -(-length // ranks)
    return range(min(size * rank, length), min(size * (rank + 1), length))


def balanced(length: int, ranks: int, rank: int) -> tuple[range, range]:
    """The positions that a rank has in attention: of the front and of the back. The sequence may end before they do."""
    size = balanced_rows(length, ranks) // 2
    back = 2 * ranks - 1 - rank
    return range(size * rank, size * (rank + 1)), range(size * back, size * (back + 1))


def balanced_rows(length: int, ranks: int) -> int:
    """How many positions each rank has in attention."""
    return 2 * -(-length // (2 * ranks))


@lru_cache(maxsize=256)
def exchange(length: int, ranks: int, rank: int, device: torch.device) -> Exchange:
    """What a rank sends and receives, for a sequence of this length."""
    mine, halves = in_order(length, ranks, rank), balanced(length, ranks, rank)
    sent = [list(_shared(mine, balanced(length, ranks, other), first=mine.start)) for other in range(ranks)]
    received = []
    for other in range(ranks):
        theirs = in_order(length, ranks, other)
        size = len(halves[0])
        at = [_shared(theirs, [half], first=half.start - i * size) for i, half in enumerate(halves)]
        received.append([index for indices in at for index in indices])
    return Exchange(
        own=torch.tensor(list(chain.from_iterable(sent)), dtype=torch.int64, device=device),
        balanced=torch.tensor(list(chain.from_iterable(received)), dtype=torch.int64, device=device),
        num_sent=[len(rows) for rows in sent],
        num_received=[len(rows) for rows in received],
        num_own=len(mine),
        num_balanced=balanced_rows(length, ranks),
    )


def to_balanced(rows: Tensor, plan: Exchange, group: ProcessGroup) -> Tensor:
    """This rank's rows in order [own, …] as its balanced ones [balanced, …], with zeros at the end. Collective."""
    received = all_to_all_single_autograd(rows[plan.own], plan.num_received, plan.num_sent, group)
    return _placed(received, plan.balanced, plan.num_balanced)


def to_order(rows: Tensor, plan: Exchange, group: ProcessGroup) -> Tensor:
    """The opposite of `to_balanced`. Collective."""
    received = all_to_all_single_autograd(rows[plan.balanced], plan.num_sent, plan.num_received, group)
    return _placed(received, plan.own, plan.num_own)


def _placed(rows: Tensor, at: Tensor, num_rows: int) -> Tensor:
    return rows.new_zeros(num_rows, *rows.shape[1:]).index_copy(0, at, rows)


def _shared(mine: range, others: "tuple[range, ...] | list[range]", *, first: int) -> Iterator[int]:
    """The positions in my range that one of the others has as well, counted from `first`."""
    for other in others:
        yield from range(max(mine.start, other.start) - first, min(mine.stop, other.stop) - first)
