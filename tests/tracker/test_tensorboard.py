"""Event files, read back by TensorBoard itself."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.tensorflow_stub.errors import DataLossError
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

from runner.errors import RunnerError
from runner.protocols import Image, Outcome, RunInfo, Table
from runner.tracker.tensorboard import TensorBoard


def info(run: Path, *, step: int = 0) -> RunInfo:
    return RunInfo(run_dir=run, run_id="0123456789abcdef", name="points", config={}, step=step)


def record(run: Path, *steps: int, after: int = 0, factor: float = 1.0) -> None:
    """One attempt: opened after a step, one record at each of some steps, closed."""
    log = TensorBoard().open(info(run, step=after))
    for step in steps:
        log.log({"time_s": 0.5 * step, "train/loss": step * factor, "eval/accuracy": 0.25}, step=step)
    log.close(Outcome.DONE)


def read(run: Path) -> EventAccumulator:
    """What TensorBoard sees."""
    accumulator = EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    return accumulator


def test_tensorboard_reads_the_values(tmp_path: Path) -> None:
    record(tmp_path, 10, 20)
    seen = read(tmp_path)
    assert seen.Tags()["scalars"] == ["train/loss", "eval/accuracy"]
    assert [(event.step, event.value) for event in seen.Scalars("train/loss")] == [(10, 10.0), (20, 20.0)]


def test_the_checksums_are_tensorboards_own(tmp_path: Path) -> None:
    """Its reader in Python recomputes each one, and raises where they differ."""
    record(tmp_path, 1, 2, 3)
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert len(list(RawEventFileLoader(str(file)).Load())) == 5  # version, session start, three of ours
    whole = file.read_bytes()
    file.write_bytes(whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])
    with pytest.raises(DataLossError, match="failed event crc32 check"):
        read_all(file)


def read_all(file: Path) -> None:
    """Every record, checked."""
    reader = PyRecordReader_New(str(file))
    for _ in range(5):
        reader.GetNext()


def test_a_record_is_there_once_it_is_logged(tmp_path: Path) -> None:
    log = TensorBoard().open(info(tmp_path))
    log.log({"time_s": 1.0, "train/loss": 2.0}, step=1)
    assert [event.value for event in read(tmp_path).Scalars("train/loss")] == [2.0]
    log.close(Outcome.DONE)


def test_resuming_hides_what_lies_beyond_the_step(tmp_path: Path) -> None:
    record(tmp_path, 1, 2, 3, 4)
    record(tmp_path, 3, after=2, factor=10.0)
    values = [(event.step, event.value) for event in read(tmp_path).Scalars("train/loss")]
    assert values == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_attempts_of_one_second_are_read_in_their_order(tmp_path: Path) -> None:
    for attempt in range(4):
        record(tmp_path, attempt + 1, after=attempt)
    assert [event.step for event in read(tmp_path).Scalars("train/loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1), (3, 5, 3), (3, 5, 4)])
def test_images_are_shown_pixel_for_pixel(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    log = TensorBoard().open(info(tmp_path))
    log.log_images({"samples": Image(pixels=pixels)}, step=7)
    log.close(Outcome.DONE)
    (shown,) = read(tmp_path).Images("samples")
    assert (shown.step, shown.width, shown.height) == (7, 5, 3)
    decoded = np.asarray(PILImage.open(io.BytesIO(shown.encoded_image_string)))
    np.testing.assert_array_equal(decoded, pixels.squeeze())


def test_text_and_tables_are_shown_as_text(tmp_path: Path) -> None:
    log = TensorBoard().open(info(tmp_path))
    log.log_text({"sample": "once upon a time"}, step=2)
    log.log_tables({"wrong": Table(columns=["is", "taken for"], rows=[[3, "a|b"], [None, "1"]])}, step=2)
    log.close(Outcome.DONE)
    seen = read(tmp_path)
    assert seen.SummaryMetadata("sample").plugin_data.plugin_name == "text"
    assert [(event.step, event.tensor_proto.string_val[0]) for event in seen.Tensors("sample")] == [
        (2, b"once upon a time")
    ]
    (table,) = seen.Tensors("wrong")
    assert table.tensor_proto.string_val[0].decode() == ("| is | taken for |\n| --- | --- |\n| 3 | a\\|b |\n|  | 1 |")


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    with pytest.raises(RunnerError, match=r"pip install tensorboard, or leave it out: tracker=\[\]"):
        TensorBoard().open(info(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_building_the_part_imports_nothing_of_tensorboard() -> None:
    said = "import sys, runner.tracker.tensorboard as t; t.TensorBoard(); print('tensorboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
