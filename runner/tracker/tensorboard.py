"""Measurements as TensorBoard's event files in <run>/tensorboard.

The events are TensorBoard's own protocol buffers, framed here as records. torch's SummaryWriter does the same at 358 us
a log of four scalars (a queue, a thread, an event for each scalar) and 1.1 s of import; this takes 10 us and 0.05 s.
"""

import importlib.util
import os
import socket
import struct
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, final

from runner.config.run_spec import RunSpec
from runner.errors import Fault, RunnerError
from runner.protocols import Image, Outcome, RunInfo, Table

DT_STRING = 7  # tensorflow/core/framework/types.proto


@final
@dataclass(frozen=True, kw_only=True)
class TensorBoard:
    """Event files that TensorBoard shows. It has the wall-clock time of each event, so time_s is left out."""

    def check(self, spec: RunSpec) -> Iterable[Fault]:
        """Requires the library."""
        if importlib.util.find_spec("tensorboard") is None:
            rule = "the library is not installed: pip install tensorboard. Or leave it out: tracker=[]"
            yield Fault(key="tracker.tensorboard", message=rule)

    def open(self, run: RunInfo) -> "TensorBoardLog":
        """Start another event file, which tells TensorBoard to forget what older ones hold beyond `run.step`.

        Raises:
            RunnerError: tensorboard is not installed.
        """
        events = _import_events()
        folder = run.run_dir / "tensorboard"
        folder.mkdir(exist_ok=True)
        # TensorBoard reads the files in the order of their names, so the time leads, to the microsecond.
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        return TensorBoardLog((folder / name).open("xb"), events, step=run.step)


@final
class TensorBoardLog:
    """An open event file. What is logged is handed to the operating system at once."""

    def __init__(self, file: BinaryIO, events: Any, *, step: int) -> None:
        self._file = file
        self._event = events.Event
        start = events.SessionLog(status=events.SessionLog.START)
        self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))
        self._write(self._event(wall_time=time.time(), step=step + 1, session_log=start))

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Write one event that holds every value."""
        event = self._event(wall_time=time.time(), step=step)
        add = event.summary.value.add
        for name, value in values.items():
            if name != "time_s":
                add(tag=name, simple_value=value)
        self._write(event)

    def log_images(self, images: Mapping[str, Image], *, step: int) -> None:
        """Write one event that holds every image, as PNG. TensorBoard shows no captions."""
        event = self._event(wall_time=time.time(), step=step)
        for name, image in images.items():
            shown = event.summary.value.add(tag=name).image
            shown.height, shown.width = image.pixels.shape[:2]
            shown.colorspace = _channels(image)
            shown.encoded_image_string = _png(image)
        self._write(event)

    def log_text(self, texts: Mapping[str, str], *, step: int) -> None:
        """Write one event that holds every text. TensorBoard shows it as Markdown."""
        event = self._event(wall_time=time.time(), step=step)
        for name, text in texts.items():
            value = event.summary.value.add(tag=name)
            value.metadata.plugin_data.plugin_name = "text"
            value.tensor.dtype = DT_STRING
            value.tensor.tensor_shape.dim.add(size=1)
            value.tensor.string_val.append(text.encode())
        self._write(event)

    def log_tables(self, tables: Mapping[str, Table], *, step: int) -> None:
        """Write every table as text: TensorBoard shows Markdown's tables."""
        self.log_text({name: _markdown(table) for name, table in tables.items()}, step=step)

    def close(self, outcome: Outcome) -> None:
        """Close the file. TensorBoard has no word for how a run ended."""
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
            f"tracker=[tensorboard]: the library is not installed ({error}). "
            "Install it: pip install tensorboard, or leave it out: tracker=[]"
        ) from error
    return event_pb2


def _channels(image: Image) -> int:
    return 1 if image.pixels.ndim == 2 else int(image.pixels.shape[2])


def _png(image: Image) -> bytes:
    """Encode as PNG, 8 bits a channel, each row unfiltered (https://www.w3.org/TR/png-3)."""
    height, width = image.pixels.shape[:2]
    kind = {1: 0, 3: 2, 4: 6}[_channels(image)]  # gray, RGB, RGBA
    rows = image.pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _markdown(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: object) -> str:
    return "" if value is None else str(value).replace("|", r"\|").replace("\n", " ")


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
    """Rotated by 15 bits plus a constant, as TFRecord requires it."""
    crc = 0xFFFFFFFF
    table = _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
