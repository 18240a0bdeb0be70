"""The one port that node 0 opens to the network. Nothing behind it is reached without the secret of the launchers.

Torch's TCPStore does for anyone what they ask for. So the launchers' store and that of the ranks listen on the loopback
interface of node 0. Node 0 has a gate before them, and every other node a tunnel to it, which ends at loopback ports.
"""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, final

from runner.launch.node_group import LOOPBACK
from runner.launch.nodes import handshake, relay
from runner.launch.nodes.handshake import RefusedError

LAUNCHERS, RANKS = "launchers", "ranks"
"""The services: the store of the launchers, and that of the ranks."""
MAX_PENDING = 256
"""Connections that have not proved anything yet; one more closes the oldest of them."""
MAX_REPORTED = 10
POLL_S = 0.02


class Passage(Protocol):
    """The way to the services of node 0: the gate itself there, a tunnel on every other node."""

    def open(self, service: str, reserve_port: Callable[[], int]) -> int:
        """The loopback port of this machine that leads to a service of node 0, where `reserve_port` gives it a port."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class _Service:
    port: int
    connecting: asyncio.Lock
    """Held while one connection waits for the service to listen, so that the others need not poll it as well."""


@final
class Gate:
    """Admits connections to services of node 0. Other threads than that of the loop may call its methods."""

    def __init__(self, loop: asyncio.AbstractEventLoop, secret: bytes) -> None:
        self._loop = loop
        self._secret = secret
        self._services: dict[str, _Service] = {}
        self._pending: dict[asyncio.Task[Any], None] = {}
        self._reported: set[str] = set()

    def listen(self, listeners: Iterable[socket.socket]) -> None:
        """Accept connections from now on. The sockets are the gate's."""
        for listener in listeners:
            asyncio.run_coroutine_threadsafe(relay.serve(listener, self._handle), self._loop)

    def open(self, service: str, reserve_port: Callable[[], int]) -> int:
        """Let those who know the secret reach the port."""
        port = reserve_port()
        self._services[service] = _Service(port=port, connecting=asyncio.Lock())
        return port

    async def _handle(self, connection: socket.socket) -> None:
        try:
            await self._serve(connection, await self._admit(connection))
        except RefusedError:
            self._report(connection)
        except OSError:
            return  # it left, or said nothing in time: a health check, or a port scan

    async def _admit(self, connection: socket.socket) -> str:
        task = asyncio.current_task()
        assert task is not None
        if len(self._pending) == MAX_PENDING:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            oldest.cancel()
        self._pending[task] = None
        try:
            async with asyncio.timeout(handshake.TIMEOUT_S):
                return await handshake.admit(connection, self._secret)
        finally:
            self._pending.pop(task, None)

    async def _serve(self, connection: socket.socket, name: str) -> None:
        service = self._services.get(name)
        if service is None:
            return
        async with service.connecting:
            target = await self._connect(name, service)
        with target:
            await relay.carry(connection, target)

    async def _connect(self, name: str, service: _Service) -> socket.socket:
        """A connection to the service, as soon as it listens: rank 0 may still be starting.

        Raises:
            ConnectionRefusedError: another start of the ranks has taken its name meanwhile.
        """
        while True:
            try:
                return await relay.connect((LOOPBACK, service.port))
            except ConnectionRefusedError:
                if self._services.get(name) is not service:
                    raise
                await asyncio.sleep(POLL_S)

    def _report(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it has left meanwhile
            host = str(connection.getpeername()[0])
            if host not in self._reported and len(self._reported) < MAX_REPORTED:
                self._reported.add(host)
                print(f"refused a connection from {host}, which has another secret", file=sys.stderr, flush=True)
