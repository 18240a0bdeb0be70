"""What the launchers on the nodes of one run agree on, through the store on node 0."""

import contextlib
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

from torch.distributed import Store  # type: ignore[attr-defined]  # public, missing in __all__

from runner.config.parts import MISSING
from runner.config.store import diff
from runner.errors import Fault, SpecError
from runner.launch.node_group import EndReason, NodeEnded
from runner.launch.nodes.gate import RANKS, Passage
from runner.launch.nodes.heartbeat import POLL_S, Heartbeat, describe_node
from runner.launch.nodes.store import SharedStore

VISIBLE_S = 60.0
"""How long a file that node 0 wrote may take to be visible elsewhere: NFS caches directories for as long."""
SETTLE_S = 5.0
"""How long the nodes wait for each other once all of them have ended."""


@final
class Coordinator:
    """One node's part in the agreement; a NodeGroup. Not thread-safe."""

    def __init__(self, store: SharedStore, passage: Passage, *, node_rank: int, num_nodes: int, lost_s: float) -> None:
        self.node_rank = node_rank
        self.num_nodes = num_nodes
        self._store = store
        self._passage = passage
        self._heartbeat = Heartbeat(store, node_rank=node_rank, num_nodes=num_nodes, lost_s=lost_s)
        self._unresponsive: set[int] = set()

    def set_node_0_address(self, address: str) -> None:
        """Publish the address at which this node reached node 0."""
        self._store.set("node_0_address", address)

    def node_0_address(self) -> str:
        """Node 0 as the others reach it; its own host name may lead it to a loopback address."""
        return str(self._store.get("node_0_address")) if self.num_nodes > 1 else self._store.endpoint.host

    def compare_declarations(self, declaration: Mapping[str, Any], *, timeout_s: float) -> None:
        """Wait until all nodes have joined, and compare their declarations with that of node 0.

        Raises:
            SpecError: they differ; all differences, on every node.
            LaunchError: a node did not join in time.
            NodeEnded: a node ended.
        """
        store = self._store
        store.set(f"declaration/{self.node_rank}", declaration)
        if self.node_rank == 0:
            others = range(1, self.num_nodes)
            joined = functools.partial(store.has_all, "declaration", others)
            self._heartbeat.wait_until(joined, timeout_s=timeout_s, describe=self._describe_missing)
            faults = _differences(
                store.get("declaration/0"), {node: store.get(f"declaration/{node}") for node in others}
            )
            store.set("faults", [[fault.key, fault.message] for fault in faults])
        else:
            # Longer than node 0 waits, whose message names the nodes that are missing.
            timeout_s += SETTLE_S
            compared = functools.partial(store.has, "faults")
            what = "node 0 is still waiting for other nodes"
            self._heartbeat.wait_until(compared, timeout_s=timeout_s, describe=lambda: what)
        found = [Fault(key=key, message=message) for key, message in store.get("faults")]
        if found:
            raise SpecError(*found)

    def share_spec(self, freeze: Callable[[], Path], *, timeout_s: float) -> Path:
        """Return the file that node 0 writes, once all nodes see it. Waits VISIBLE_S at most.

        Raises:
            LaunchError: a node does not see it.
            NodeEnded: a node ended.
        """
        timeout_s = min(timeout_s, VISIBLE_S)
        return self._write_spec(freeze, timeout_s) if self.node_rank == 0 else self._find_spec(timeout_s)

    def _write_spec(self, freeze: Callable[[], Path], timeout_s: float) -> Path:
        path = freeze().absolute()
        self._store.set("spec", {"path": str(path), "digest": _digest(path)})
        seen = functools.partial(self._store.has_all, "spec_seen", range(1, self.num_nodes))
        what = "not every node has confirmed that it sees the run's directory"
        self._heartbeat.wait_until(seen, timeout_s=2 * timeout_s, describe=lambda: what)
        return path

    def _find_spec(self, timeout_s: float) -> Path:
        written = functools.partial(self._store.has, "spec")
        what = "node 0 has not written the run's declaration"
        self._heartbeat.wait_until(written, timeout_s=timeout_s, describe=lambda: what)
        spec = self._store.get("spec")
        path = Path(spec["path"])
        rule = (
            f"{describe_node(self._store, self.node_rank)} does not see {path}, which node 0 wrote. All nodes need the"
            " same working directory or run.dir, on a file system that they share"
        )
        visible = lambda: path.exists() and _digest(path) == spec["digest"]  # noqa: E731  read again at each call
        self._heartbeat.wait_until(visible, timeout_s=timeout_s, describe=lambda: rule)
        self._store.set(f"spec_seen/{self.node_rank}", True)
        return path

    def join_start(
        self, start: int, reserve_port: Callable[[], int], *, timeout_s: float, check: Callable[[], None]
    ) -> tuple[Store, int]:
        """Wait until every node is about to start its ranks."""
        key = f"start/{start}"
        self._store.set(f"{key}/{self.node_rank}", True)
        self._store.set(f"{key}/requested", True)
        if self.node_rank == 0:
            ready = functools.partial(self._store.has_all, key, range(self.num_nodes))
            what = f"not every node is ready for start {start + 1} of the ranks"
            self._heartbeat.wait_until(ready, timeout_s=timeout_s, describe=lambda: what, check=check)
            port = self._passage.open(RANKS, reserve_port)
            self._store.set(f"{key}/ready", True)
        else:
            port = self._passage.open(RANKS, reserve_port)
            ready = functools.partial(self._store.has, f"{key}/ready")
            what = f"node 0 is not ready for start {start + 1} of the ranks"
            self._heartbeat.wait_until(ready, timeout_s=timeout_s, describe=lambda: what, check=check)
        return self._store.prefixed(f"{key}/agents"), port

    def has_joined_start(self, start: int) -> bool:
        """Whether a node is waiting for this start of the ranks."""
        return self._store.has(f"start/{start}/requested")

    def check(self) -> None:
        """Return if the other nodes are still there."""
        self._heartbeat.check()

    def announce_end(self, reason: EndReason, message: str) -> None:
        """Tell the other nodes that the run is over; the first announcement counts."""
        self._heartbeat.announce_end(reason, message)

    def report_cause(self, cause: Mapping[str, Any] | None) -> None:
        """Tell the other nodes what this one found to be the cause of the end; None = nothing."""
        with contextlib.suppress(NodeEnded):
            self._store.set(f"cause/{self.node_rank}", cause)

    def collect_causes(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The causes that nodes have reported, and the nodes that do not report within SETTLE_S.

        Raises:
            NodeEnded: node 0 cannot be reached.
        """
        everyone = range(self.num_nodes)
        deadline = time.monotonic() + SETTLE_S
        while not self._store.has_all("cause", everyone) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        reported = [node_rank for node_rank in everyone if self._store.has(f"cause/{node_rank}")]
        causes = [self._store.get(f"cause/{node_rank}") for node_rank in reported]
        self._unresponsive = set(everyone) - set(reported)
        names = [describe_node(self._store, node_rank) for node_rank in sorted(self._unresponsive)]
        return [cause for cause in causes if cause is not None], names

    def leave(self) -> None:
        """Say that this node is done; node 0 waits until the others have left, since its store closes then."""
        with contextlib.suppress(NodeEnded):
            self._store.set(f"left/{self.node_rank}", True)
            # The store does not answer when a value is set: without an answer, closing the connection could lose it.
            self._store.has(f"left/{self.node_rank}")
            if self.node_rank == 0:
                self._wait_for_others_to_leave()

    def _wait_for_others_to_leave(self) -> None:
        deadline = time.monotonic() + SETTLE_S
        others = set(range(1, self.num_nodes)) - self._unresponsive
        joined = [node_rank for node_rank in others if self._store.has(f"declaration/{node_rank}")]
        while not self._store.has_all("left", joined) and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def _describe_missing(self) -> str:
        others = range(1, self.num_nodes)
        missing = [node_rank for node_rank in others if not self._store.has(f"declaration/{node_rank}")]
        numbers = ", ".join(str(node_rank) for node_rank in missing)
        return (
            f"{len(others) - len(missing)} of {len(others)} other nodes joined at {self._store.endpoint}; missing:"
            f" {numbers}. Start the same command on every node, and make sure that it can reach that port"
        )


def _differences(node_0: Mapping[str, Any], others: Mapping[int, Mapping[str, Any]]) -> Iterator[Fault]:
    found: dict[str, list[str]] = {}
    for node_rank, declaration in others.items():
        for key, (here, there) in diff(node_0, declaration).items():
            found.setdefault(key, [f"{_shown(here)} on node 0"]).append(f"{_shown(there)} on node {node_rank}")
    for key, values in found.items():
        yield Fault(key=key, message=f"{', '.join(values)}. Start the same run on every node.")


def _shown(value: Any) -> str:
    return "nothing" if value == MISSING else repr(value)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
