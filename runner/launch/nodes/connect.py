"""How the launcher of one machine connects to those of the others, and how it disconnects."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # all are public

from runner.errors import Interrupted, LaunchError
from runner.launch.node_group import LOOPBACK, EndReason, NodeEnded
from runner.launch.nodes.coordinator import Coordinator
from runner.launch.nodes.gate import LAUNCHERS, Gate, Passage
from runner.launch.nodes.handshake import RefusedError
from runner.launch.nodes.heartbeat import POLL_S
from runner.launch.nodes.hosts import Endpoint, listen
from runner.launch.nodes.relay import background_loop
from runner.launch.nodes.secret import SharedSecret
from runner.launch.nodes.store import SharedStore
from runner.launch.nodes.tunnel import Tunnel

CONNECT_S = 1.0
EVERYWHERE = ("0.0.0.0", "::")  # as a listening socket names all addresses of its machine


@contextmanager
def connect(
    endpoint: Endpoint, *, secret: SharedSecret, node_rank: int | None, num_nodes: int, join_s: float, lost_s: float
) -> Iterator[Coordinator]:
    """Connect to node 0, and stay connected until the run has ended.

    Args:
        endpoint: where node 0 listens.
        secret: what all launchers of this run know.
        node_rank: this machine's number; 0 hosts the store; None = the next one that is free, but not 0.
        num_nodes: how many machines take part.
        join_s: how long to wait for node 0.
        lost_s: how long a machine may send no heartbeat before it counts as lost.

    Raises:
        LaunchError: node 0 cannot be reached in time, its port is taken, it has another secret, there is no place for
            this machine, or another node failed.
        Interrupted: another node was asked to stop.
    """
    with _node_ended_as_error(), background_loop() as loop:
        passage: Passage
        if node_rank == 0:
            passage, address = Gate(loop, secret.value), ""
            store = _host_store(endpoint, passage, lost_s=lost_s)
        else:
            passage = Tunnel(loop, endpoint, secret.value)
            address = _reach_node_0(endpoint, passage, secret, join_s=join_s)
            store = _reach_store(endpoint, passage, lost_s=lost_s)
        node_rank = _claim_node_rank(store, node_rank=node_rank, num_nodes=num_nodes)
        coordinator = Coordinator(store, passage, node_rank=node_rank, num_nodes=num_nodes, lost_s=lost_s)
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


def _host_store(endpoint: Endpoint, gate: Gate, *, lost_s: float) -> SharedStore:
    """The store on a loopback port, and the gate before it on the port of the endpoint."""
    behind = socket.create_server((LOOPBACK, 0))
    port = int(behind.getsockname()[1])
    timeout = timedelta(seconds=lost_s)
    store = TCPStore(
        LOOPBACK, port, None, True, timeout, wait_for_workers=False, master_listen_fd=behind.detach()
    )  # fmt: skip
    gate.open(LAUNCHERS, lambda: port)
    try:
        listeners = listen(endpoint)
    except OSError as error:
        raise LaunchError(
            f"node 0 cannot listen at {endpoint}: {error}. If another run uses the port, choose another one in"
            " launch.rendezvous."
        ) from error
    if any(listener.getsockname()[0] in EVERYWHERE for listener in listeners):
        place = f"{endpoint.host} names no address here at which others could reach node 0"
        print(f"{place}: listening on all interfaces", file=sys.stderr, flush=True)
    gate.listen(listeners)
    return SharedStore(store, endpoint)


def _reach_node_0(endpoint: Endpoint, tunnel: Tunnel, secret: SharedSecret, *, join_s: float) -> str:
    """The address at which node 0 was reached."""
    deadline = time.monotonic() + join_s
    while True:
        try:
            return tunnel.reach(LAUNCHERS)
        except RefusedError as error:
            raise LaunchError(
                f"node 0 at {endpoint} has another secret than {secret.path}. That file must be the same on every"
                " machine: use a working directory or run.dir that all of them share, or set launch.secret_file to the"
                " path of a copy. If the port is that of another run, choose another in launch.rendezvous."
            ) from error
        except OSError as error:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"cannot connect to node 0 at {endpoint} within {join_s:g} s ({error}). Start the same command on"
                    " node 0, and make sure that its port can be reached from here."
                ) from error
            time.sleep(POLL_S)


def _reach_store(endpoint: Endpoint, tunnel: Tunnel, *, lost_s: float) -> SharedStore:
    port = tunnel.open(LAUNCHERS)
    try:
        store = TCPStore(LOOPBACK, port, None, False, timedelta(seconds=lost_s), wait_for_workers=False)
    except DistError as error:
        reason = str(error).partition("\n")[0]
        raise NodeEnded(EndReason.FAILED, f"lost the connection to node 0 at {endpoint}: {reason}") from error
    return SharedStore(store, endpoint)


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
