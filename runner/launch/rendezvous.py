"""How ranks find each other: a port of rank 0's machine, a fresh one for each start."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, final

from torch.distributed import HashStore, Store  # type: ignore[attr-defined]  # public, missing in __all__
from torch.distributed.elastic.rendezvous import (
    RendezvousGracefulExitError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

from runner.launch.meeting import OtherEnded

HOST = "127.0.0.1"


class Machines(Protocol):
    """Those whose ranks start together, as one of them sees them."""

    node: int
    nodes: int

    @property
    def host(self) -> str:
        """Of node 0, where the ranks meet."""
        ...

    def round(
        self, number: int, port: Callable[[], int], *, within_s: float, meanwhile: Callable[[], None]
    ) -> tuple[Store, int]:
        """Come together for a start of all ranks: a store that only this start uses, and node 0's port."""
        ...

    def look(self) -> None:
        """Hear whether the others are there.

        Raises:
            OtherEnded: one of them is not.
        """
        ...

    def is_waited_for(self, number: int) -> bool:
        """Whether a machine has come to that start."""
        ...


@final
class Alone:
    """One machine: nothing needs to be agreed on."""

    node = 0
    nodes = 1
    host = HOST

    def round(
        self, number: int, port: Callable[[], int], *, within_s: float, meanwhile: Callable[[], None]
    ) -> tuple[Store, int]:
        """At once."""
        return HashStore(), port()

    def look(self) -> None:
        """There is nobody."""

    def is_waited_for(self, number: int) -> bool:
        """No other machine will join."""
        return False


@final
class Rendezvous(RendezvousHandler):
    """Torch's elastic agent asks it where to meet, and whether other machines have moved on.

    Torch's own c10d rendezvous waits up to 0.3 s at random, and keeps a store and a heartbeat alive in threads of the
    launcher, which is about to fork; it numbers machines as it likes, and does not tell one of the failure of another.
    Here rank 0 hosts the ranks' store, anew for each start: with one store for all of them, 7 of 12 restarts on gloo
    hung or failed. The machines are as many as they were told, and come and go together.
    """

    def __init__(self, machines: Machines, *, is_over: Callable[[], bool], join_s: float = 0.0) -> None:
        self.ended: OtherEnded | None = None
        self._machines = machines
        self._is_over = is_over
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
            RendezvousGracefulExitError: the launcher was asked to stop, or another machine ended; the agent then starts
                nothing.
            LaunchError: a machine did not come.
        """
        machines, number = self._machines, self._num_starts
        self._num_starts += 1
        self._go_on()
        with self._hearing():
            store, port = machines.round(number, self._fresh_port, within_s=self._join_s, meanwhile=self._go_on)
        return RendezvousInfo(store, machines.node, machines.nodes, RendezvousStoreInfo(machines.host, port))

    def is_closed(self) -> bool:
        """Open as long as the run may go on."""
        return self._is_over()

    def set_closed(self) -> None:
        """The machines have their own way to end."""

    def num_nodes_waiting(self) -> int:
        """1 if another machine waits for us to start all ranks anew.

        Raises:
            RendezvousGracefulExitError: another machine ended.
        """
        with self._hearing():
            self._machines.look()
            return int(self._machines.is_waited_for(self._num_starts))

    def shutdown(self) -> bool:
        """Give the port back."""
        self._port.close()
        return True

    def _go_on(self) -> None:
        if self._is_over():
            raise RendezvousGracefulExitError("the launcher was asked to stop")

    def _fresh_port(self) -> int:
        self._port.close()
        self._port = _reserve_port()
        return int(self._port.getsockname()[1])

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        """Keep the word of the machine that ended, and let the agent end too."""
        try:
            yield
        except OtherEnded as ended:
            self.ended = ended
            raise RendezvousGracefulExitError(ended.text) from ended


def _reserve_port() -> socket.socket:
    """A free port, kept from others until the socket is closed.

    Bound with SO_REUSEADDR and never listening: rank 0's store may bind it as well, on every address as it does, while
    the system hands it out to nobody else.
    """
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("", 0))
    return reserved
