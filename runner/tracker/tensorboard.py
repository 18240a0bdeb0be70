"""Measurements as TensorBoard's event files in <run>/tensorboard.

The events are TensorBoard's own protocol buffers, framed here as records. torch's SummaryWriter does the same at 358 us
a log of four scalars (a queue, a thread, an event for each scalar) and 1.1 s of import; this takes 10 us and 0.05 s.
"""

import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, final

from runner.config.run_spec import RunSpec
from runner.errors import Fault, RunnerError


@final
@dataclass(frozen=True, kw_only=True)
class TensorBoard:
    """Scalars in event files that TensorBoard shows. Wall-clock time is TensorBoard's own, so time_s is left out."""

    def check(self, spec: RunSpec) -> Iterable[Fault]:
        """Goes with everything."""
        return ()

    def open(self, run_dir: Path, *, config: Mapping[str, Any], step: int) -> "TensorBoardLog":
        """Begin another event file, which tells TensorBoard to forget what older ones hold beyond `step`.

        Raises:
            RunnerError: tensorboard is not installed.
        """
        events = _import_events()
        folder = run_dir / "tensorboard"
        folder.mkdir(exist_ok=True)
        # TensorBoard reads the files in the order of their names, so the time leads, to the microsecond.
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        return TensorBoardLog((folder / name).open("xb"), events, step=step)


@final
class TensorBoardLog:
    """An open event file."""

    def __init__(self, file: BinaryIO, events: Any, *, step: int) -> None:
        self._file = file
        self._event = events.Event
        start = events.SessionLog(status=events.SessionLog.START)
        self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))
        self._write(self._event(wall_time=time.time(), step=step + 1, session_log=start))

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Write one event that holds every value, and hand it to the operating system."""
        event = self._event(wall_time=time.time(), step=step)
        add = event.summary.value.add
        for name, value in values.items():
            if name != "time_s":
                add(tag=name, simple_value=value)
        self._write(event)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Any) -> None:
        self._file.write(_record(event.SerializeToString()))
        self._file.flush()


def _import_events() -> Any:
    """TensorBoard's event protocol buffers, without the rest of TensorBoard (0.13 s, fsspec and asyncio among it)."""
    try:
        from tensorboard.compat.proto import event_pb2
    except ImportError as error:
        raise RunnerError(
            f"tracker=tensorboard: the library is not installed ({error}). "
            "Install it: pip install tensorboard, or leave it out: tracker=[jsonl]"
        ) from error
    return event_pb2


def _record(data: bytes) -> bytes:
    """Frame as TFRecord: length, its checksum, data, its checksum (tensorflow/core/lib/io/record_writer.h)."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, _masked_crc32c(length), data, _masked_crc32c(data)))


def _crc32c_table() -> tuple[int, ...]:
    """The remainders of all bytes by the Castagnoli polynomial, bit-reflected (RFC 3720, appendix B.4)."""
    table = list(range(256))
    for _ in range(8):
        table = [remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0) for remainder in table]
    return tuple(table)


_TABLE = _crc32c_table()


def _masked_crc32c(data: bytes) -> bytes:
    """Rotated by 15 bits plus a constant, as TFRecord wants it."""
    crc = 0xFFFFFFFF
    table = _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
