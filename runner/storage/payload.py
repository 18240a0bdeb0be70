"""Reading payload files: the header and each chunk are compared with their hashes. Needs no torch."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import xxhash

from runner.errors import CheckpointError
from runner.storage.files import UnreadableError, open_regular, read_exactly
from runner.storage.format import MANIFEST, METADATA, Chunk, File

READ_BYTES = 1 << 20  # read and hashed at a time: fits a core's cache, so that hashing does not wait for memory
READERS = 2  # threads: while one copies from the page cache, or waits for the disk, the other one hashes
TASK_BYTES = 8 << 20  # that a thread reads before it takes the next task: small chunks share one
MAX_HEADER_BYTES = 100_000_000  # as safetensors' own reader has it


@contextmanager
def open_payload(path: Path, *, chunks: Sequence[Chunk], expected: File) -> Iterator[BinaryIO]:
    """Open a payload file whose header is intact.

    Args:
        chunks: all that are in the file, in file order.
        expected: the manifest's entry for it.

    Raises:
        CheckpointError: it is missing, cannot be read, or its header is corrupted.
    """
    with open_regular(path) as file:
        try:
            _verify_header(file, path, chunks, expected)
            yield file
        except OSError as error:
            raise UnreadableError(f"{path} cannot be read: {error.strerror}.") from error


def _verify_header(file: BinaryIO, path: Path, chunks: Sequence[Chunk], expected: File) -> None:
    """Compare the safetensors header, which other programs read, with the hash in the manifest."""
    size = read_exactly(file, 8)
    length = int.from_bytes(size, "little")
    if length > MAX_HEADER_BYTES or 8 + length != chunks[0].start:
        raise CheckpointError(
            f"{path} is corrupted: its header would have {length} bytes, but {METADATA} says {chunks[0].start - 8}."
        )
    hasher = xxhash.xxh3_128(size + read_exactly(file, length))
    for chunk in chunks:
        hasher.update(bytes.fromhex(chunk.xxh3_128))
    if hasher.hexdigest() != expected.xxh3_128:
        raise CheckpointError(f"{path} is corrupted: its header does not match the hash in {MANIFEST}.")


def read_in_parallel(chunks: Sequence[Chunk], read: Callable[[Chunk], None]) -> None:
    """Call `read` with each chunk, in two threads, which begin in the given order.

    Both reading and hashing release the interpreter lock. Loading 1.0 GB from the page cache took 1.28 times as long as
    reading the bytes alone in one thread (2 cores).

    Raises:
        Exception: what `read` raised of the first chunk, in the given order, with which it failed.
    """
    tasks = list(_tasks(chunks))
    if len(tasks) == 1:
        _read_each(tasks[0], read)
        return
    with ThreadPoolExecutor(READERS, thread_name_prefix="read") as pool:
        try:
            for done in [pool.submit(_read_each, task, read) for task in tasks]:
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the block waits for those that have begun
            raise


def _tasks(chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    task: list[Chunk] = []
    size = 0
    for chunk in chunks:
        task.append(chunk)
        size += chunk.bytes
        if size >= TASK_BYTES:
            yield task
            task, size = [], 0
    if task:
        yield task


def _read_each(task: Sequence[Chunk], read: Callable[[Chunk], None]) -> None:
    for chunk in task:
        read(chunk)


def read_verified(file: BinaryIO, path: Path, chunk: Chunk, target: memoryview | None = None) -> None:
    """Read a chunk and compare it with its hash.

    Args:
        file: open for reading.
        path: of the file, for messages.
        chunk: in that file.
        target: memory of the chunk's size to read it into; None = only compare.

    Raises:
        CheckpointError: the file is truncated or corrupted.
    """
    scratch = memoryview(bytearray(min(READ_BYTES, chunk.bytes) if target is None else 0))
    hasher = xxhash.xxh3_128()
    done = 0
    while done < chunk.bytes:
        piece = scratch[: chunk.bytes - done] if target is None else target[done : done + READ_BYTES]
        read = os.preadv(file.fileno(), [piece], chunk.start + done)
        if not read:
            raise CheckpointError(
                f"{path} is truncated: tensor {chunk.key!r} ends after {done} of {chunk.bytes} bytes."
            )
        hasher.update(piece[:read])
        done += read
    if hasher.hexdigest() != chunk.xxh3_128:
        raise CheckpointError(f"{path} is corrupted: tensor {chunk.key!r} does not match its hash in {METADATA}.")
