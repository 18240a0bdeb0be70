"""How the launcher of one machine comes to the meeting, and how it leaves."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import DistError, Store, TCPStore  # type: ignore[attr-defined]  # all are public

from runner.errors import Interrupted, LaunchError
from runner.launch.hosts import Endpoint
from runner.launch.meeting import FAILED, INTERRUPTED, POLL_S, Meeting, OtherEnded

TRY_S = 1.0


@contextmanager
def meet(endpoint: Endpoint, *, node_rank: int | None, nodes: int, join_s: float, lost_s: float) -> Iterator[Meeting]:
    """Come to the place where node 0 waits, and stay until the run has ended.

    Args:
        endpoint: node 0's.
        node_rank: this machine's number; 0 hosts the store; None = one that is free, but not 0.
        nodes: how many machines there will be.
        join_s: how long to wait for node 0.
        lost_s: after how long without a word a machine is taken for lost.

    Raises:
        LaunchError: node 0 is not there in time, its port is taken, or there is no place for this machine.
    """
    if node_rank == 0:
        store, address = _host(endpoint, lost_s=lost_s), ""
    else:
        store, address = _reach(endpoint, join_s=join_s, lost_s=lost_s)
    node = _sit(store, node_rank=node_rank, nodes=nodes, endpoint=endpoint)
    meeting = Meeting(store, node=node, nodes=nodes, endpoint=endpoint, lost_s=lost_s)
    if address:
        meeting.reached(address)
    try:
        yield meeting
    except OtherEnded as ended:
        if ended.how == INTERRUPTED:
            raise Interrupted(ended.text) from None
        raise LaunchError(ended.text) from None
    except (Interrupted, KeyboardInterrupt):
        meeting.end(INTERRUPTED, f"node {node} was asked to stop.")
        raise
    except BaseException as error:
        meeting.end(FAILED, f"node {node} ended: {error}")
        raise
    finally:
        meeting.leave()


def _host(endpoint: Endpoint, *, lost_s: float) -> Store:
    timeout = timedelta(seconds=lost_s)
    try:
        return TCPStore(endpoint.host, endpoint.port, None, True, timeout, wait_for_workers=False)
    except DistError as error:
        reason = str(error).partition("\n")[0]
        raise LaunchError(
            f"node 0 cannot wait at {endpoint}: {reason} Does another run wait there? Choose another port in"
            " launch.rendezvous."
        ) from error


def _reach(endpoint: Endpoint, *, join_s: float, lost_s: float) -> tuple[Store, str]:
    """The store on node 0 and the address that led there.

    Torch's client warns at length while nothing listens: a socket of ours tries first.
    """
    deadline = time.monotonic() + join_s
    while True:
        try:
            with socket.create_connection((endpoint.host, endpoint.port), timeout=TRY_S) as probe:
                address = str(probe.getpeername()[0])
            timeout = timedelta(seconds=lost_s)
            return TCPStore(endpoint.host, endpoint.port, None, False, timeout, wait_for_workers=False), address
        except (OSError, DistError) as error:
            if time.monotonic() > deadline:
                reason = str(error).partition("\n")[0]
                raise LaunchError(
                    f"nobody waits at {endpoint} after {join_s:g} s ({reason}). Start the same command on node 0,"
                    " and see that its port can be reached from here."
                ) from error
            time.sleep(POLL_S)


def _sit(store: Store, *, node_rank: int | None, nodes: int, endpoint: Endpoint) -> int:
    for seat in range(1, nodes) if node_rank is None else (node_rank,):
        if store.add(f"claim/{seat}", 1) == 1:
            store.set(f"seat/{seat}", f"{socket.gethostname()}, process {os.getpid()}")
            return seat
    if node_rank is None:
        rule = f"{nodes} nodes met at {endpoint} already, and this would be one more. Is that another run's port?"
        raise LaunchError(f"{rule} Choose another in launch.rendezvous, or a larger launch.nodes.")
    other = store.get(f"seat/{node_rank}").decode()
    raise LaunchError(f"launch.node_rank={node_rank} is {other} already. Give each node a number of its own.")
