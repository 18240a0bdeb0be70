"""Data of other libraries, as their own objects: read in order, split among ranks, and continued in mid-epoch."""

import io
import json
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import pytest

from runner import Data
from runner.config.run_spec import Eval
from runner.data import Stream
from runner.data.datasets import check_data, is_stream
from runner.data.indexed import IndexedSource
from runner.data.steps import RankSteps
from runner.errors import DataError
from runner.order.sequential import Sequential
from runner.protocols import LoaderOptions, SourceRequest
from tests.data.streams import CPU, in_turn, merged, source
from tests.data.test_source import Seat
from tests.data.threads import on_threads
from tests.docs.test_commands import CHECKOUT, FILE

NUMBERS = [*range(23)]

NEVER = Eval(every_steps=None, at_end=False, micro_items=None)
AT_END = Eval(every_steps=None, at_end=True, micro_items=None)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


def shown(name: str) -> dict[str, Any]:
    """What a file that docs/data.md shows defines."""
    (content,) = [
        content for file, content in FILE.findall((CHECKOUT / "docs" / "data.md").read_text()) if file == name
    ]
    defined: dict[str, Any] = {}
    exec(content, defined)
    return defined


def take(rows: list[Any]) -> Any:
    """Collate: the numbers of rows."""
    import torch

    return torch.tensor([int(row["number"]) for row in rows])


def assert_read_in_order(make: Callable[[], Any], expected: list[int], *, ranks: tuple[int, ...] = (1, 2)) -> None:
    """Two epochs in steps of 4; stopped after 3 and 8 steps, and continued by other ranks and workers."""
    steps = [sorted(expected[first : first + 4]) for first in range(0, len(expected), 4)] * 2
    check_data(Data(train=make()), "hook", evaluation=NEVER)
    whole, states = source(make(), collate=take), []
    seen = []
    for step in islice(whole, len(steps)):
        seen.append([step])
        states.append(json.loads(json.dumps(whole.state_dict())))
    assert [sorted(step) for step in merged([[step for (step,) in seen]], micro_items=2)] == steps
    for done, size, workers in ((3, ranks[-1], 0), (8, 1, 1), (3, 1, 0)):

        def run(world: Any, done: int = done, workers: int = workers) -> Any:
            resumed = source(make(), world=world, workers=workers, collate=take)
            resumed.load_state_dict(states[done - 1])
            return [*islice(resumed, 4)]

        results = on_threads(size, run)
        assert [sorted(step) for step in merged(results, micro_items=2)] == steps[done : done + 4]


def indexed(dataset: Any, collate: Any) -> list[int]:
    """An epoch of a map-style dataset."""
    options = LoaderOptions(collate=collate, device=CPU, workers=0, prefetch=2, pin_memory=False)
    request = SourceRequest(step_items=4, micro_items=4, world=Seat(), seed=0, order=Sequential(), loader=options)
    steps = RankSteps.of(request.order.build(dataset, seed=0), request)
    opened = IndexedSource(dataset, steps, request)
    return [item for step in islice(opened, 6) for micro in step.micro_batches for item in micro.batch.tolist()]


def test_a_hugging_face_dataset_on_disk_is_map_style(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"number": NUMBERS}).save_to_disk(tmp_path / "arrow")
    dataset = datasets.load_from_disk(tmp_path / "arrow").with_format("torch")
    assert not is_stream(dataset)
    check_data(Data(train=dataset, eval=dataset), "hook", evaluation=AT_END)
    from torch.utils.data import default_collate

    assert indexed(dataset, lambda rows: default_collate(rows)["number"]) == NUMBERS


def streamed_parquet(directory: Path, num_files: int) -> Any:
    """Numbers in Parquet files, streamed by Hugging Face."""
    datasets = pytest.importorskip("datasets")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    files = []
    for file, numbers in enumerate(numpy.array_split(NUMBERS, num_files)):
        files.append(str(directory / f"{file}.parquet"))
        parquet.write_table(pyarrow.table({"number": numbers}), files[-1])
    return lambda: datasets.load_dataset(
        "parquet", data_files=files, split="train", streaming=True, cache_dir=str(directory / "cache")
    )


def test_a_hugging_face_stream_divides_itself_and_continues_by_its_state(tmp_path: Path) -> None:
    make = streamed_parquet(tmp_path, 3)
    assert is_stream(make())
    opened = source(make(), collate=take)
    next(iter(opened))
    state = opened.state_dict()
    assert state["num_shards"] == 3
    assert all(shard["state"] for shard in state["shards"] if shard["taken"])
    assert_read_in_order(make, in_turn(*(part.tolist() for part in numpy.array_split(NUMBERS, 3))))


def test_a_hugging_face_stream_of_one_file_is_read_by_every_rank(tmp_path: Path) -> None:
    make = streamed_parquet(tmp_path, 1)
    for result in on_threads(2, lambda world: source(make(), world=world)):
        with pytest.raises(DataError, match=r"has num_shards=1, fewer than the 2 data ranks.*shard=False"):
            raise result
    assert_read_in_order(lambda: Stream(make(), shard=False), NUMBERS)


def test_a_shuffle_buffer_of_hugging_face_is_continued_by_counting(tmp_path: Path) -> None:
    """Its own state forgets what the buffer held, so that items would be lost."""
    make = streamed_parquet(tmp_path, 1)

    def shuffled() -> Stream:
        hugging = make().shuffle(
            seed=0, buffer_size=6, max_buffer_input_shards=1
        )  # 1: no threads, which take 5 s to end
        return Stream(hugging, shard=False, state=False)

    whole = source(shuffled(), collate=take)
    epochs = [step.micro_batches for step in islice(whole, 12)]
    first, second = ([int(i) for micros in part for m in micros for i in m.batch] for part in (epochs[:6], epochs[6:]))
    assert sorted(first) == sorted(second) == NUMBERS
    assert first != second
    begun = source(shuffled(), collate=take)
    for _ in islice(begun, 8):
        pass
    for workers in (0, 1):
        resumed = source(shuffled(), collate=take, workers=workers)
        resumed.load_state_dict(begun.state_dict())
        rest = [int(i) for step in islice(resumed, 4) for m in step.micro_batches for i in m.batch]
        assert rest == second[8:]


def write_tar(path: Path, numbers: Any) -> str:
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            content = str(number).encode()
            info = tarfile.TarInfo(f"{number:06d}.number")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def web_dataset(urls: list[str]) -> Any:
    import webdataset

    return webdataset.WebDataset(urls, shardshuffle=False, nodesplitter=None, empty_check=False)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves files open
def test_tar_shards_of_webdataset(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    parts = [part.tolist() for part in numpy.array_split(NUMBERS, 3)]
    urls = [write_tar(tmp_path / f"{number}.tar", part) for number, part in enumerate(parts)]
    assert_read_in_order(lambda: web_dataset(urls), NUMBERS)
    tars = shown("user_hooks/tars.py")["Tars"]
    assert_read_in_order(lambda: tars(urls), in_turn(*parts), ranks=(1, 3))


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
def test_a_stateful_loader_of_single_items_is_a_stream() -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    rows = [{"number": number} for number in NUMBERS]
    assert_read_in_order(lambda: stateful.StatefulDataLoader(rows, batch_size=None), NUMBERS)
    opened = source(stateful.StatefulDataLoader(rows, batch_size=None), collate=take)
    next(iter(opened))
    assert opened.state_dict()["shards"][0]["items"] == 4


def test_rows_of_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "numbers.parquet"
    parquet.write_table(pyarrow.table({"number": NUMBERS}), path, row_group_size=8)

    rows = shown("user_hooks/parquet_rows.py")["Rows"]
    assert_read_in_order(lambda: rows(path), in_turn(NUMBERS[:8], NUMBERS[8:16], NUMBERS[16:]), ranks=(1, 3))


def test_a_memory_map_is_map_style(tmp_path: Path) -> None:
    numpy.asarray(NUMBERS, dtype=numpy.int64).tofile(tmp_path / "numbers.bin")
    mapped = numpy.memmap(tmp_path / "numbers.bin", dtype=numpy.int64, mode="r")
    assert not is_stream(mapped)
    check_data(Data(train=mapped), "hook", evaluation=NEVER)
    from torch.utils.data import default_collate

    assert indexed(mapped, default_collate) == NUMBERS
    rows = numpy.memmap(tmp_path / "numbers.bin", dtype=numpy.int64, mode="r", shape=(23, 1))
    import torch

    assert indexed(rows, lambda many: torch.from_numpy(numpy.stack(many))[:, 0]) == NUMBERS
