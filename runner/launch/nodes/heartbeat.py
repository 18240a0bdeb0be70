"""Whether the other nodes are still there."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from runner.errors import LaunchError
from runner.launch.node_group import EndReason, NodeEnded
from runner.launch.nodes.store import SharedStore

POLL_S = 0.05
HEARTBEAT_S = 1.0


@final
@dataclass(frozen=True, kw_only=True)
class _LastHeartbeat:
    count: int
    seen_at: float


@final
class Heartbeat:
    """Shows the other nodes that this one is alive, and notices when one of them has ended. Not thread-safe."""

    def __init__(self, store: SharedStore, *, node_rank: int, num_nodes: int, lost_s: float) -> None:
        self._store = store
        self._node_rank = node_rank
        self._num_nodes = num_nodes
        self._lost_s = lost_s
        self._count = 0
        self._sent_at = 0.0
        self._last: dict[int, _LastHeartbeat] = {}

    def check(self) -> None:
        """Send a heartbeat if one is due, and return if no other node has ended.

        Raises:
            NodeEnded: one of them ended, or sent no heartbeat for `lost_s`.
        """
        now = time.monotonic()
        if now - self._sent_at > HEARTBEAT_S:
            self._count, self._sent_at = self._count + 1, now
            self._store.set(f"heartbeat/{self._node_rank}", self._count)
            if self._node_rank == 0:
                self._find_lost_nodes(now)
        if self._store.has("ended"):
            reason, message = self._store.get("ended")
            raise NodeEnded(EndReason(reason), message)

    def wait_until(
        self,
        condition: Callable[[], bool],
        *,
        timeout_s: float,
        describe: Callable[[], str],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Return once the condition holds.

        Args:
            condition: polled every POLL_S.
            timeout_s: how long to wait.
            describe: what did not happen, for the message of the error.
            check: called while waiting; may raise.

        Raises:
            LaunchError: it does not hold in time.
            NodeEnded: a node ended.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            check()
            try:
                self.check()
            except NodeEnded:
                if condition():  # what a node said before it ended counts
                    return
                raise
            if time.monotonic() > deadline:
                raise LaunchError(f"timed out after {timeout_s:g} s: {describe()}.")
            time.sleep(POLL_S)

    def announce_end(self, reason: EndReason, message: str) -> None:
        """Let `check` raise on every node; the first announcement of all nodes counts."""
        with contextlib.suppress(NodeEnded):
            self._store.set_once("ended", [reason, message])

    def _find_lost_nodes(self, now: float) -> None:
        """Node 0 does this for all."""
        for node_rank in range(1, self._num_nodes):
            if not self._store.has(f"heartbeat/{node_rank}"):
                continue
            count = self._store.get(f"heartbeat/{node_rank}")
            last = self._last.get(node_rank)
            if last is None or last.count != count:
                self._last[node_rank] = _LastHeartbeat(count=count, seen_at=now)
            elif now - last.seen_at > self._lost_s:
                name = describe_node(self._store, node_rank)
                self.announce_end(EndReason.FAILED, f"no heartbeat from {name} for {self._lost_s:g} s.")


def describe_node(store: SharedStore, node_rank: int) -> str:
    """A node by its number, host and process, once it has joined."""
    return f"node {node_rank} ({store.get(f'joined/{node_rank}')})"
