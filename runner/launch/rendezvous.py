"""How the ranks of one machine find each other: a port on the loopback interface, a fresh one for each start."""

import socket
from collections.abc import Callable
from typing import final

from torch.distributed import HashStore  # type: ignore[attr-defined]  # public, missing in __all__
from torch.distributed.elastic.rendezvous import (
    RendezvousGracefulExitError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

HOST = "127.0.0.1"


@final
class OneMachine(RendezvousHandler):
    """Torch's elastic agent asks it where to meet. There is one agent, so nothing needs to be agreed on.

    Torch's own c10d rendezvous waits up to 0.3 s at random, and keeps a store and a heartbeat alive in threads of the
    launcher, which is about to fork. Here rank 0 hosts the store, anew for each start: with one store for all of them,
    7 of 12 restarts on gloo hung or failed.
    """

    def __init__(self, *, is_over: Callable[[], bool]) -> None:
        self._is_over = is_over
        self._port = _reserve_port()

    def get_backend(self) -> str:
        """The name for the agent's records."""
        return "one_machine"

    def get_run_id(self) -> str:
        """There is no other run on this rendezvous."""
        return "runner"

    @property
    def use_agent_store(self) -> bool:
        """Rank 0 hosts the store."""
        return False

    def next_rendezvous(self) -> RendezvousInfo:
        """Where the ranks meet that start now.

        Raises:
            RendezvousGracefulExitError: the launcher was asked to stop; the agent then starts nothing.
        """
        if self._is_over():
            raise RendezvousGracefulExitError("the launcher was asked to stop")
        self._port.close()
        self._port = _reserve_port()
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo(HOST, self._port.getsockname()[1]))

    def is_closed(self) -> bool:
        """Open as long as the run may go on."""
        return self._is_over()

    def set_closed(self) -> None:
        """Nobody else would come."""

    def num_nodes_waiting(self) -> int:
        """No other node will join."""
        return 0

    def shutdown(self) -> bool:
        """Give the port back."""
        self._port.close()
        return True


def _reserve_port() -> socket.socket:
    """A free port, kept from others until the socket is closed.

    Bound with SO_REUSEADDR and never listening: rank 0's store may bind it as well, while the system hands it out to
    nobody else.
    """
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((HOST, 0))
    return reserved
