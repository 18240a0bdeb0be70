"""How the launcher of one machine connects to those of the others, and how it disconnects."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # all are public

from runner.errors import Interrupted, LaunchError
from runner.launch.node_group import EndReason, NodeEnded
from runner.launch.nodes.coordinator import Coordinator
from runner.launch.nodes.heartbeat import POLL_S
from runner.launch.nodes.hosts import Endpoint
from runner.launch.nodes.store import SharedStore

CONNECT_S = 1.0


@contextmanager
def connect(
    endpoint: Endpoint, *, node_rank: int | None, num_nodes: int, join_s: float, lost_s: float
) -> Iterator[Coordinator]:
    """Connect to node 0, and stay connected until the run has ended.

    Args:
        endpoint: where node 0 listens.
        node_rank: this machine's number; 0 hosts the store; None = the next one that is free, but not 0.
        num_nodes: how many machines take part.
        join_s: how long to wait for node 0.
        lost_s: how long a machine may send no heartbeat before it counts as lost.

    Raises:
        LaunchError: node 0 cannot be reached in time, its port is taken, there is no place for this machine, or another
            node failed.
        Interrupted: another node was asked to stop.
    """
    with _node_ended_as_error():
        if node_rank == 0:
            store, address = _host_store(endpoint, lost_s=lost_s), ""
        else:
            store, address = _reach_store(endpoint, join_s=join_s, lost_s=lost_s)
        node_rank = _claim_node_rank(store, node_rank=node_rank, num_nodes=num_nodes)
        coordinator = Coordinator(store, node_rank=node_rank, num_nodes=num_nodes, lost_s=lost_s)
        if address:
            coordinator.set_node_0_address(address)
        with _announced_end(coordinator):
            yield coordinator


@contextmanager
def _node_ended_as_error() -> Iterator[None]:
    try:
        yield
    except NodeEnded as ended:
        if ended.reason is EndReason.INTERRUPTED:
            raise Interrupted(ended.message) from None
        raise LaunchError(ended.message) from None


@contextmanager
def _announced_end(coordinator: Coordinator) -> Iterator[None]:
    """Tell the other nodes if an error on this one ends the block, and leave."""
    try:
        yield
    except NodeEnded:
        raise
    except (Interrupted, KeyboardInterrupt):
        coordinator.announce_end(EndReason.INTERRUPTED, f"node {coordinator.node_rank} was asked to stop.")
        raise
    except BaseException as error:
        coordinator.announce_end(EndReason.FAILED, f"node {coordinator.node_rank} failed: {error}")
        raise
    finally:
        coordinator.leave()


def _host_store(endpoint: Endpoint, *, lost_s: float) -> SharedStore:
    timeout = timedelta(seconds=lost_s)
    try:
        store = TCPStore(endpoint.host, endpoint.port, None, True, timeout, wait_for_workers=False)
    except DistError as error:
        reason = str(error).partition("\n")[0]
        raise LaunchError(
            f"node 0 cannot listen at {endpoint}: {reason} If another run uses the port, choose another one in"
            " launch.rendezvous."
        ) from error
    return SharedStore(store, endpoint)


def _reach_store(endpoint: Endpoint, *, join_s: float, lost_s: float) -> tuple[SharedStore, str]:
    """The store on node 0, and the address at which it was reached.

    Torch's client logs long warnings while nothing listens, so a plain socket tries first.
    """
    deadline = time.monotonic() + join_s
    while True:
        try:
            with socket.create_connection((endpoint.host, endpoint.port), timeout=CONNECT_S) as probe:
                address = str(probe.getpeername()[0])
            timeout = timedelta(seconds=lost_s)
            store = TCPStore(endpoint.host, endpoint.port, None, False, timeout, wait_for_workers=False)
            return SharedStore(store, endpoint), address
        except (OSError, DistError) as error:
            if time.monotonic() > deadline:
                reason = str(error).partition("\n")[0]
                raise LaunchError(
                    f"cannot connect to node 0 at {endpoint} within {join_s:g} s ({reason}). Start the same command on"
                    " node 0, and make sure that its port can be reached from here."
                ) from error
            time.sleep(POLL_S)


def _claim_node_rank(store: SharedStore, *, node_rank: int | None, num_nodes: int) -> int:
    for candidate in range(1, num_nodes) if node_rank is None else (node_rank,):
        if store.increment(f"claims/{candidate}") == 1:
            store.set(f"joined/{candidate}", f"{socket.gethostname()}, process {os.getpid()}")
            return candidate
    if node_rank is None:
        rule = f"all {num_nodes} nodes have already joined at {store.endpoint}, and this would be one more."
        raise LaunchError(f"{rule} If the port is that of another run, choose another in launch.rendezvous.")
    other = _wait_for_name(store, node_rank)
    raise LaunchError(f"launch.node_rank={node_rank} is already taken by {other}. Give every node its own number.")


def _wait_for_name(store: SharedStore, node_rank: int) -> str:
    """Who has claimed it; its name follows its claim."""
    deadline = time.monotonic() + CONNECT_S
    while not store.has(f"joined/{node_rank}") and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return str(store.get(f"joined/{node_rank}")) if store.has(f"joined/{node_rank}") else "another node"
