"""Connections that are accepted and carried on by an event loop in a thread of the launcher."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

CHUNK = 1 << 16
RETRY_S = 0.1
CONNECT_S = 5.0


@contextmanager
def background_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread. What still runs in it at the end of the block is cancelled."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="runner-relay", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def serve(listener: socket.socket, handle: Callable[[socket.socket], Awaitable[None]]) -> None:
    """Handle each connection in a task of its own, until cancelled. Both close it."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    with listener:
        listener.setblocking(False)
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:
                await asyncio.sleep(RETRY_S)  # it was closed meanwhile, or there is no file descriptor left at present
                continue
            task = loop.create_task(_handle(connection, handle))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


async def _handle(connection: socket.socket, handle: Callable[[socket.socket], Awaitable[None]]) -> None:
    with connection:
        _prepare(connection)
        await handle(connection)


async def connect(address: tuple[str, int]) -> socket.socket:
    """A connection to an address, given as a number or a name."""
    connection = await asyncio.to_thread(socket.create_connection, address, CONNECT_S)
    _prepare(connection)
    return connection


def _prepare(connection: socket.socket) -> None:
    """For use in an event loop. A store's messages are small, and each waits for an answer, so none is delayed."""
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def carry(first: socket.socket, second: socket.socket) -> None:
    """Send on what either side sends, until one of them is closed."""
    copies = [asyncio.create_task(_copy(first, second)), asyncio.create_task(_copy(second, first))]
    try:
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for copy in copies:
            copy.cancel()
        await asyncio.gather(*copies, return_exceptions=True)


async def _copy(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    try:
        while data := await loop.sock_recv(source, CHUNK):
            await loop.sock_sendall(target, data)
    except OSError:
        return  # one of them is closed
