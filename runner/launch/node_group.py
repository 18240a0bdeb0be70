"""The machines whose ranks start and end together, as the launcher on one of them sees them."""

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol, final

from torch.distributed import HashStore, Store  # type: ignore[attr-defined]  # public, missing in __all__

LOOPBACK = "127.0.0.1"


class EndReason(StrEnum):
    """Why a node ended the run."""

    INTERRUPTED = "interrupted"
    FAILED = "failed"


@final
class NodeEnded(Exception):
    """Another node has ended the run."""

    def __init__(self, reason: EndReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class NodeGroup(Protocol):
    """What the rendezvous of the ranks needs to know about the machines."""

    node_rank: int
    """The number of this machine."""
    num_nodes: int

    def join_start(
        self, start: int, reserve_port: Callable[[], int], *, timeout_s: float, check: Callable[[], None]
    ) -> tuple[Store, int]:
        """Wait until every node is about to start its ranks.

        Args:
            start: how many times the ranks were started before.
            reserve_port: reserves a loopback port of node 0, for rank 0's store.
            timeout_s: how long to wait for the other nodes.
            check: called while waiting; may raise.

        Returns:
            A store that only this start uses, and the loopback port of this machine that leads to rank 0's store.

        Raises:
            LaunchError: a node did not join in time.
            NodeEnded: a node ended.
        """
        ...

    def check(self) -> None:
        """Return if the other nodes are still there.

        Raises:
            NodeEnded: one of them is not.
        """
        ...

    def has_joined_start(self, start: int) -> bool:
        """Whether a node is waiting for this start of the ranks."""
        ...


@final
class SingleNode:
    """A group of one machine: nothing to wait for and nothing to agree on."""

    node_rank = 0
    num_nodes = 1

    def join_start(
        self, start: int, reserve_port: Callable[[], int], *, timeout_s: float, check: Callable[[], None]
    ) -> tuple[Store, int]:
        """Return at once."""
        return HashStore(), reserve_port()

    def check(self) -> None:
        """There is no other node."""

    def has_joined_start(self, start: int) -> bool:
        """There is no other node."""
        return False
