"""What reading costs: resuming at any depth, reading beside a DataLoader, and the padding that a cut saves.

Ratios of alternating measurements, medians.

    python benchmarks/data.py                 # all
    python benchmarks/data.py resume reading  # some
"""

import argparse
import multiprocessing
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from runner.data.indexed import IndexedSource
from runner.data.lengths import lengths_of
from runner.data.order import Shuffled
from runner.data.steps import RankSteps
from runner.data.stream import Stream as StreamChoice
from runner.data.streamed import StreamedSource
from runner.order.shuffled import Shuffled as ShuffledOption
from runner.protocols import LoaderOptions, SourceRequest
from runner.world.memory import keep_freed_blocks
from runner.world.solo import SoloWorld
from user_hooks.pydoc_pairs import PADDING, build_data, build_model, compute_loss

CPU = torch.device("cpu")
BATCH = 32


class Items(Dataset[torch.Tensor]):
    """Items that are computed: of `size` numbers each."""

    def __init__(self, num_items: int, size: int) -> None:
        self._num_items = num_items
        self._one = torch.ones(size)

    def __len__(self) -> int:
        return self._num_items

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._one * index


def loader_options(workers: int) -> LoaderOptions:
    """Those that a DataLoader has if it is told nothing else."""
    collate = torch.utils.data.default_collate
    return LoaderOptions(collate=collate, device=CPU, workers=workers, prefetch=2, pin_memory=False)


def source(dataset: Any, *, workers: int = 0) -> IndexedSource:
    """Our reading of a dataset, in steps of one micro-batch."""
    request = SourceRequest(
        step_items=BATCH,
        micro_items=BATCH,
        world=SoloWorld(CPU),
        seed=0,
        order=ShuffledOption(),
        loader=loader_options(workers),
    )
    return IndexedSource(dataset, RankSteps.of(Shuffled(len(dataset), seed=0), request), request)


def alternate(repeats: int, *ways: Callable[[], float]) -> list[float]:
    """The median of each way's measurements; the first of each warms up."""
    taken = [[way() for way in ways] for _ in range(repeats + 1)][1:]
    return [statistics.median(times) for times in zip(*taken, strict=True)]


def first_step_s(num_items: int, position: int) -> float:
    """Seconds from an opened dataset to its first step."""
    dataset = Items(num_items, 8)
    began = time.perf_counter()
    opened = source(dataset)
    opened.load_state_dict({"position": position})
    next(iter(opened))
    return time.perf_counter() - began


def resume(repeats: int) -> None:
    """The first step of a resumed run beside that of a new one, and the size of the order."""
    print("first step of a map-style dataset                                 ms    ratio")
    million = 1_000_000
    depths = {"at the start": 0, "in the middle": million // 2, "in the thousandth epoch": 999 * million + 17}
    ways = [partial(first_step_s, million, depth) for depth in depths.values()]
    ways += [partial(first_step_s, 1000, 0), partial(first_step_s, 10**9, 0)]
    names = [f"10^6 items, {name}" for name in depths] + ["10^3 items, at the start", "10^9 items, at the start"]
    medians = alternate(max(repeats, 51), *ways)
    for name, median in zip(names, medians, strict=True):
        print(f"{name:62} {1e3 * median:6.2f} {median / medians[0]:8.2f}")
    tracemalloc.start()
    order = Shuffled(10**9, seed=0)
    order.indices(3, 10**8, 10**8 + 4096)
    print(f"memory of the order of 10^9 items, at most: {tracemalloc.get_traced_memory()[1] / 1024:.0f} KiB")
    tracemalloc.stop()


NUM_SMALL, NUM_LARGE = 20_000, 2_000


def numbers() -> torch.Tensor:
    return torch.arange(2.0 * NUM_SMALL * 8).reshape(-1, 8)


DATASETS: dict[str, tuple[Callable[[], Any], int]] = {
    "small items (32 bytes)": (lambda: Items(2 * NUM_SMALL, 8), NUM_SMALL),
    "large items (200000 bytes)": (lambda: Items(2 * NUM_LARGE, 50_000), NUM_LARGE),
    "TensorDataset (32 bytes and 4)": (lambda: TensorDataset(numbers(), numbers()[:, 0]), NUM_SMALL),
    "NumPy array (32 bytes)": (lambda: numbers().numpy(), NUM_SMALL),
}
"""Each with the items that are read: half of it, since both read ahead until the end of the measurement."""


def reading(repeats: int) -> None:
    """Our steps beside the batches of a DataLoader with the same dataset, collate, workers and prefetch.

    Each measurement in a process of its own: what the system takes for memory differs between processes.
    """
    print("reading, items a second                                  DataLoader     ours    ratio")
    for what, (_, num_items) in DATASETS.items():
        for workers in (0, 2):
            ways = [partial(in_new_process, read_s, what, workers, ours) for ours in (False, True)]
            rates = [num_items // BATCH * BATCH / seconds for seconds in alternate(repeats, *ways)]
            print(
                f"{f'{what}, {workers} workers':55} {rates[0]:11,.0f} {rates[1]:8,.0f} {rates[1] / rates[0]:8.2f}",
                flush=True,
            )


def in_new_process(measure: Callable[..., float], *arguments: Any) -> float:
    """What a function returns in a new interpreter."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def read_s(what: str, workers: int, ours: bool) -> float:
    """Seconds to read a dataset: by us, in a process set up as a run's, or by a DataLoader."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for workers: the default on Linux, but not in a new process
    build, num_items = DATASETS[what]
    dataset, steps = build(), num_items // BATCH
    batches: Iterable[Any] = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=workers)
    if ours:
        keep_freed_blocks()
        batches = source(dataset, workers=workers)
    return alternate(3, partial(drained, batches, steps))[0]


class Stream(IterableDataset[torch.Tensor]):
    """The same items as a stream, in up to 16 shards."""

    num_shards = 16

    def __init__(self, num_items: int, size: int) -> None:
        self._num_items = num_items
        self._one = torch.ones(size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self._one * index for index in range(self._num_items))

    def shard(self, rank: int, ranks: int) -> "Stream":
        return Stream(self._num_items // ranks, len(self._one))


def streams(repeats: int) -> None:
    """A stream, as one or in shards, beside a DataLoader of it."""
    print("reading a stream                                          us an item    ratio")
    for size, workers, steps in ((8, 0, 150), (8, 1, 600), (50_000, 1, 60)):
        print(f"items of {4 * size} bytes, {workers} workers")
        stream = Stream(2 * steps * BATCH, size)
        loader, options = DataLoader(stream, batch_size=BATCH, num_workers=workers), loader_options(workers)
        ways: dict[str, Iterable[Any]] = {
            "DataLoader": loader,
            "ours": StreamSteps(StreamChoice(stream, shard=False), options),
            "ours, in 16 shards": StreamSteps(stream, options),
            "ours, draws=False": StreamSteps(StreamChoice(stream, shard=False, draws=False), options),
            "ours, in 16 shards, draws=False": StreamSteps(StreamChoice(stream, draws=False), options),
        }
        medians = alternate(repeats, *(partial(drained, way, steps) for way in ways.values()))
        for name, median in zip(ways, medians, strict=True):
            line = f"{name:55} {1e6 * median / (steps - 1) / BATCH:12.1f} {median / medians[0]:8.2f}"
            print(line, flush=True)


class StreamSteps:
    """Our steps of a stream, from its beginning whenever they are asked for."""

    def __init__(self, dataset: Any, options: LoaderOptions) -> None:
        self._dataset = dataset
        self._options = options

    def __iter__(self) -> Iterator[Any]:
        world = SoloWorld(CPU)
        return iter(
            StreamedSource(
                self._dataset,
                "train",
                step_items=BATCH,
                micro_items=BATCH,
                world=world,
                seed=0,
                options=self._options,
            )
        )


def drained(loader: Iterable[Any], count: int) -> float:
    """Seconds for the batches after the first, so that the start of workers does not count."""
    batches = iter(loader)
    next(batches)
    began = time.perf_counter()
    for _ in islice(batches, count - 1):
        pass
    return time.perf_counter() - began


def cut(repeats: int) -> None:
    """Padding, and the time of forward and backward, of the recipe pydoc_pairs."""
    print("one epoch of pydoc_pairs, batch.items=32                          padding   CPU s    ratio")
    data = build_data(vocabulary=512)
    model = build_model(vocabulary=512, width=64)
    lengths = lengths_of(data, micro_tokens=None)
    cuts: dict[str, dict[str, Any]] = {
        "micro_items=8, cut=even": {"micro_items": 8},
        "micro_items=8, cut=by_length": {"micro_items": 8, "lengths": lengths},
        "micro_tokens=160, cut=by_length": {"micro_items": 32, "lengths": lengths, "micro_tokens": 160},
    }
    paddings = [0.0] * len(cuts)

    def epoch(number: int, keys: dict[str, Any]) -> float:
        steps = RankSteps(order=Shuffled(len(data.train), seed=0), step_items=32, rank=0, ranks=1, **keys)
        plans = list(islice(steps.starting_at(0), len(data.train) // 32))
        words = padded = 0
        began = time.process_time()
        for plan in plans:
            for micro in plan.micro_batches:
                assert data.collate is not None
                batch = data.collate([data.train[index] for index in micro.indices])
                words += batch[0].numel() + batch[1].numel()
                padded += int((batch[0] == PADDING).sum() + (batch[1] == PADDING).sum())
                compute_loss(model, batch).total.backward()  # type: ignore[no-untyped-call]
        paddings[number] = padded / words
        return time.process_time() - began

    medians = alternate(repeats, *(partial(epoch, number, keys) for number, keys in enumerate(cuts.values())))
    for name, share, median in zip(cuts, paddings, medians, strict=True):
        print(f"{name:62} {share:9.1%} {median:7.2f} {median / medians[0]:8.2f}")


MEASUREMENTS = {"resume": resume, "reading": reading, "streams": streams, "cut": cut}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("measurements", nargs="*", default=list(MEASUREMENTS), help=", ".join(MEASUREMENTS))
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.measurements:
        MEASUREMENTS[name](arguments.repeats)


if __name__ == "__main__":
    main()
