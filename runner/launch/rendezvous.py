"""How ranks find each other: at a loopback port of their machine, a new one for each start."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from torch.distributed.elastic.rendezvous import (
    RendezvousGracefulExitError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

from runner.launch.node_group import LOOPBACK, NodeEnded, NodeGroup


@final
class Rendezvous(RendezvousHandler):
    """Tells torch's elastic agent where its ranks meet, and when those of other machines start again.

    Torch's own c10d rendezvous waits up to 0.3 s at random, and keeps a store and a heartbeat alive in threads of the
    launcher, which is about to fork; it assigns node ranks in any order, and does not report the failure of one machine
    to another. Here rank 0 hosts the ranks' store, a new one for each start: with one store for all of them, 7 of 12
    restarts on gloo hung or failed. That store listens on the loopback interface; the node group sees to it that a port
    of every machine leads there. The number of machines is fixed, and they start and end together.
    """

    def __init__(self, group: NodeGroup, *, stop_requested: Callable[[], bool], join_s: float = 0.0) -> None:
        self.ended: NodeEnded | None = None
        """Why another node ended the run; None = none did."""
        self._group = group
        self._stop_requested = stop_requested
        self._join_s = join_s
        self._num_starts = 0
        self._port = _reserve_port()

    def get_backend(self) -> str:
        """The name for the agent's records."""
        return "runner"

    def get_run_id(self) -> str:
        """There is no other run on this rendezvous."""
        return "runner"

    @property
    def use_agent_store(self) -> bool:
        """Rank 0 hosts a store of its own."""
        return False

    def next_rendezvous(self) -> RendezvousInfo:
        """Where the ranks meet that start now.

        Raises:
            RendezvousGracefulExitError: the launcher was asked to stop, or another node ended; the agent then starts
                nothing.
            LaunchError: a node did not join in time.
        """
        group, start = self._group, self._num_starts
        self._num_starts += 1
        self._check_stop()
        with self._exit_gracefully():
            store, port = group.join_start(start, self._new_port, timeout_s=self._join_s, check=self._check_stop)
        return RendezvousInfo(store, group.node_rank, group.num_nodes, RendezvousStoreInfo(LOOPBACK, port))

    def is_closed(self) -> bool:
        """Open as long as the run may go on."""
        return self._stop_requested()

    def set_closed(self) -> None:
        """Nothing to do: the end of the run is announced through the node group."""

    def num_nodes_waiting(self) -> int:
        """1 if another node waits for this one to start all ranks again.

        Raises:
            RendezvousGracefulExitError: another node ended.
        """
        with self._exit_gracefully():
            self._group.check()
            return int(self._group.has_joined_start(self._num_starts))

    def shutdown(self) -> bool:
        """Release the port."""
        self._port.close()
        return True

    def _check_stop(self) -> None:
        if self._stop_requested():
            raise RendezvousGracefulExitError("the launcher was asked to stop")

    def _new_port(self) -> int:
        self._port.close()
        self._port = _reserve_port()
        return int(self._port.getsockname()[1])

    @contextmanager
    def _exit_gracefully(self) -> Iterator[None]:
        """Record which node ended the run, and let the agent end as well."""
        try:
            yield
        except NodeEnded as ended:
            self.ended = ended
            raise RendezvousGracefulExitError(ended.message) from ended


def _reserve_port() -> socket.socket:
    """A free port, kept from others until the socket is closed.

    Bound with SO_REUSEADDR and never listening: rank 0's store can bind it as well, while the system gives it to nobody
    else.
    """
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((LOOPBACK, 0))
    return reserved
