"""How two launchers prove to each other, before anything else is read, that they know the same secret.

Each sends a random number and answers that of the other with an HMAC-SHA256 of both; the secret itself is never sent.
All messages have a fixed size. Python's multiprocessing.connection does the same with HMAC-MD5, which hosts in FIPS
mode refuse, and without a limit on time.
"""

import asyncio
import hashlib
import hmac
import secrets
import socket
from typing import final

GREETING = b"runner-1"
SIZE = 32
"""Of a random number, a proof and a service's name, in bytes."""
TIMEOUT_S = 10.0
ACCEPTED, REFUSED = b"\1", b"\0"


@final
class RefusedError(Exception):
    """The other side does not know the secret."""


async def admit(connection: socket.socket, secret: bytes) -> str:
    """Let a peer prove that it knows the secret, prove it in turn, and return the name of the service that it wants.

    Raises:
        RefusedError: it does not know the secret.
        OSError: the connection broke.
    """
    loop = asyncio.get_running_loop()
    ours = secrets.token_bytes(SIZE)
    await loop.sock_sendall(connection, GREETING + ours)
    service = await _receive(connection, SIZE)
    theirs = await _receive(connection, SIZE)
    proof = await _receive(connection, SIZE)
    if not hmac.compare_digest(proof, _prove(secret, b"client", ours, theirs, service)):
        await loop.sock_sendall(connection, REFUSED + bytes(SIZE))
        raise RefusedError("it does not know the secret")
    await loop.sock_sendall(connection, ACCEPTED + _prove(secret, b"server", ours, theirs, service))
    return service.rstrip(b"\0").decode("ascii")


async def introduce(connection: socket.socket, secret: bytes, service: str) -> None:
    """Prove to node 0 that this launcher knows the secret, and see to it that node 0 does. The other end of `admit`.

    Raises:
        RefusedError: node 0 has another secret.
        OSError: the connection broke, or something else than node 0 answers.
    """
    loop = asyncio.get_running_loop()
    if await _receive(connection, len(GREETING)) != GREETING:
        raise ConnectionError("another program answers there, or another version of the runner")
    theirs = await _receive(connection, SIZE)
    ours, name = secrets.token_bytes(SIZE), service.encode("ascii").ljust(SIZE, b"\0")
    await loop.sock_sendall(connection, name + ours + _prove(secret, b"client", theirs, ours, name))
    answer = await _receive(connection, len(ACCEPTED))
    proof = await _receive(connection, SIZE)
    expected = _prove(secret, b"server", theirs, ours, name)
    if answer != ACCEPTED or not hmac.compare_digest(proof, expected):
        raise RefusedError("it has another secret")


def _prove(secret: bytes, role: bytes, of_server: bytes, of_client: bytes, service: bytes) -> bytes:
    # The role keeps a proof of one side from being sent back as that of the other.
    return hmac.new(secret, role + of_server + of_client + service, hashlib.sha256).digest()


async def _receive(connection: socket.socket, size: int) -> bytes:
    """Exactly so many bytes; no more than that are ever held."""
    loop, received = asyncio.get_running_loop(), b""
    while len(received) < size:
        part = await loop.sock_recv(connection, size - len(received))
        if not part:
            raise ConnectionError("the connection was closed")
        received += part
    return received
