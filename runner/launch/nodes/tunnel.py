"""The way from another node to the services of node 0: loopback ports that lead through its gate."""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import final

from runner.launch.node_group import LOOPBACK
from runner.launch.nodes import handshake, relay
from runner.launch.nodes.handshake import RefusedError
from runner.launch.nodes.hosts import Endpoint


@final
class Tunnel:
    """Carries connections of this machine to the gate of node 0, and proves there that they may come in."""

    def __init__(self, loop: asyncio.AbstractEventLoop, endpoint: Endpoint, secret: bytes) -> None:
        self._loop = loop
        self._endpoint = endpoint
        self._secret = secret
        self._ports: dict[str, int] = {}

    def reach(self, service: str) -> str:
        """Connect to the service once, and return the address at which node 0 was reached.

        Raises:
            RefusedError: node 0 has another secret.
            OSError: it cannot be reached, or something else answers there.
        """
        return asyncio.run_coroutine_threadsafe(self._reach(service), self._loop).result()

    def open(self, service: str, reserve_port: Callable[[], int] | None = None) -> int:
        """A loopback port that leads to the service, the same for every start of the ranks; node 0 reserves its own."""
        if service not in self._ports:
            listener = socket.create_server((LOOPBACK, 0))
            self._ports[service] = int(listener.getsockname()[1])
            serving = relay.serve(listener, partial(self._handle, service=service))
            asyncio.run_coroutine_threadsafe(serving, self._loop)
        return self._ports[service]

    async def _reach(self, service: str) -> str:
        with await self._connect(service) as connection:
            return str(connection.getpeername()[0])

    async def _handle(self, connection: socket.socket, *, service: str) -> None:
        try:
            remote = await self._connect(service)
        except (OSError, RefusedError):
            return  # the store's client finds the connection closed, and says so
        with remote:
            await relay.carry(connection, remote)

    async def _connect(self, service: str) -> socket.socket:
        connection = await relay.connect((self._endpoint.host, self._endpoint.port))
        try:
            async with asyncio.timeout(handshake.TIMEOUT_S):
                await handshake.introduce(connection, self._secret, service)
        except TimeoutError:
            connection.close()
            raise ConnectionError(f"no answer within {handshake.TIMEOUT_S:g} s") from None
        except BaseException:
            connection.close()
            raise
        return connection
