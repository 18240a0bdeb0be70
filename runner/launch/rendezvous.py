"""How ranks find each other: a port of rank 0's machine, a fresh one for each start."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from torch.distributed import HashStore  # type: ignore[attr-defined]  # public, missing in __all__
from torch.distributed.elastic.rendezvous import (
    RendezvousGracefulExitError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

from runner.launch.meeting import Meeting, OtherEnded

HOST = "127.0.0.1"
EVERY_ADDRESS = ""


@final
class OneMachine(RendezvousHandler):
    """Torch's elastic agent asks it where to meet. There is one agent, so nothing needs to be agreed on.

    Torch's own c10d rendezvous waits up to 0.3 s at random, and keeps a store and a heartbeat alive in threads of the
    launcher, which is about to fork. Here rank 0 hosts the store, anew for each start: with one store for all of them,
    7 of 12 restarts on gloo hung or failed.
    """

    def __init__(self, *, is_over: Callable[[], bool]) -> None:
        self._is_over = is_over
        self._port = _reserve_port(HOST)

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
        self._port = _reserve_port(HOST)
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


@final
class SeveralMachines(RendezvousHandler):
    """Torch's elastic agent on one of several machines asks it where to meet, and whether the others have moved on.

    The machines are as many as they were told, each with a number of its own, and they come and go together: torch's
    c10d rendezvous would number them as it likes, and does not tell one of the failure of another.
    """

    def __init__(self, meeting: Meeting, *, is_over: Callable[[], bool], join_s: float) -> None:
        self.ended: OtherEnded | None = None
        self._meeting = meeting
        self._is_over = is_over
        self._join_s = join_s
        self._num_starts = 0
        self._port = _reserve_port(EVERY_ADDRESS)

    def get_backend(self) -> str:
        """The name for the agent's records."""
        return "several_machines"

    def get_run_id(self) -> str:
        """There is no other run on this rendezvous."""
        return "runner"

    @property
    def use_agent_store(self) -> bool:
        """Rank 0 hosts a store of its own."""
        return False

    def next_rendezvous(self) -> RendezvousInfo:
        """Where the ranks of all machines meet that start now.

        Raises:
            RendezvousGracefulExitError: this launcher was asked to stop, or another machine ended.
            RunFailed: a machine did not come.
        """
        meeting, number = self._meeting, self._num_starts
        self._num_starts += 1
        self._go_on()
        with self._hearing():
            store, port = meeting.round(number, self._fresh_port, within_s=self._join_s, meanwhile=self._go_on)
        return RendezvousInfo(store, meeting.node, meeting.nodes, RendezvousStoreInfo(meeting.endpoint.host, port))

    def is_closed(self) -> bool:
        """Open as long as the run may go on."""
        return self._is_over()

    def set_closed(self) -> None:
        """The meeting has its own way to end."""

    def num_nodes_waiting(self) -> int:
        """1 if another machine waits for us to start all ranks anew.

        Raises:
            RendezvousGracefulExitError: another machine ended.
        """
        with self._hearing():
            self._meeting.look()
            return int(self._meeting.is_waited_for(self._num_starts))

    def shutdown(self) -> bool:
        """Give the port back."""
        self._port.close()
        return True

    def _go_on(self) -> None:
        if self._is_over():
            raise RendezvousGracefulExitError("the launcher was asked to stop")

    def _fresh_port(self) -> int:
        self._port.close()
        self._port = _reserve_port(EVERY_ADDRESS)
        return int(self._port.getsockname()[1])

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        """Keep the word of the machine that ended, and let the agent end too."""
        try:
            yield
        except OtherEnded as ended:
            self.ended = ended
            raise RendezvousGracefulExitError(ended.text) from ended


def _reserve_port(host: str) -> socket.socket:
    """A free port, kept from others until the socket is closed.

    Bound with SO_REUSEADDR and never listening: rank 0's store may bind it as well, while the system hands it out to
    nobody else.
    """
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((host, 0))
    return reserved
