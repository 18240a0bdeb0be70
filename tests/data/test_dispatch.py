"""loader.source=rank_0: every rank gets what it would have read itself, and only rank 0 reads."""

import math
import threading
from collections import OrderedDict, UserDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from torch import Tensor

from runner.config.run_spec import Batch, Cut, Loader, Reader
from runner.data import Mixture
from runner.data.passes import Passes
from runner.data.source import open_source, plan_at
from runner.data.wire import packed_message, unpacked_message
from runner.errors import DataError
from runner.protocols import Data
from tests.conftest import Ended
from tests.data.streams import Plain, ShardedWithState
from tests.data.test_source import Letters
from tests.data.threads import on_threads


class Pair(NamedTuple):
    x: Tensor
    name: str


@dataclass(frozen=True)
class Views:
    image: Tensor
    weights: dict[str, Any]
    mean: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", self.image.mean())


class Encoding(UserDict[str, Any]):
    """As transformers' BatchEncoding."""


def assert_same(one: Any, other: Any) -> None:
    """In value, type and every bit."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        bits = [tensor.contiguous().flatten().view(torch.uint8).tolist() for tensor in (one, other)]
        assert bits[0] == bits[1]
    elif isinstance(one, numpy.ndarray):
        assert (one.dtype, one.tolist()) == (other.dtype, other.tolist())
    elif isinstance(one, OrderedDict | dict | UserDict):
        assert [*one] == [*other]
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, Views):
        assert_same([one.image, one.weights, one.mean], [other.image, other.weights, other.mean])
    else:
        assert one == other or (math.isnan(one) and math.isnan(other))


def test_a_batch_arrives_as_it_was() -> None:
    dtypes = (torch.bool, torch.int8, torch.int64, torch.bfloat16, torch.float64, torch.complex64)
    batch = {
        "tensors": [(torch.arange(15) % 2).reshape(3, 5).to(dtype) for dtype in dtypes],
        "odd": (torch.tensor(2.5), torch.empty(0, 3), torch.ones(4, 6)[:, ::2], torch.tensor([math.nan, math.inf])),
        3: [None, True, 1 << 70, 0.1, math.inf, math.nan, "ä\n", ("a",), [], {}],
        "named": Pair(torch.ones(2, requires_grad=True).detach(), "a"),
        "views": Views(torch.rand(2, 2), {"x": torch.ones(1)}),
        "mappings": (OrderedDict(b=torch.ones(1), a=2), Encoding(x=torch.ones(1))),
        "size": torch.Size([2, 3]),
        "numpy": [numpy.arange(3, dtype=">i4"), numpy.float32(0.1), numpy.ones(())],
    }
    expected = batch | {"numpy": [numpy.arange(3, dtype="i4"), numpy.float32(0.1), numpy.ones(())]}
    assert_same(unpacked_message(packed_message(batch)), expected)


class Own:
    def to(self, device: Any, *, non_blocking: bool) -> "Own":
        return self


@dataclass
class Remembers:
    x: int


def remembering() -> Remembers:
    one = Remembers(1)
    vars(one)["y"] = 2
    return one


def local() -> Any:
    class Local(NamedTuple):
        x: int

    return Local(1)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            Own(),
            r"source=rank_0: the\.1 of the batch is a Own, which cannot be sent. Rank 0 can send tensors, .*Let coll",
        ),
        (torch.ones(2).to_sparse(), r"the\.1 of the batch is a Tensor, which cannot"),
        (remembering(), r"the\.1 of the batch is a Remembers, which cannot"),
        (local(), r"a local\.<locals>\.Local, whose class other ranks do not find as tests.*Define it at the top"),
        (numpy.array(["a"]), r"is a ndarray, which cannot be sent"),
    ],
)
def test_what_cannot_be_sent_is_named(value: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        packed_message({"the": [1, value]})


NUMBERS = [10 * index for index in range(50)]
LENGTHS = [1 + index % 7 for index in range(50)]


class Spells:
    """A source of one's own."""

    def open_source(self, request: Any) -> Letters:
        return Letters(request, "the quick brown fox jumps over the lazy dog " * 20)


class SpellsAlone(Spells):
    """Which does not know that it may read for others."""

    def open_source(self, request: Any) -> Letters:
        options = replace(request.loader, reads_for=1)
        return Letters(replace(request, loader=options, micro_items=request.step_items), "the quick brown fox " * 50)


KINDS: dict[str, tuple[Callable[[], Data], dict[str, Any]]] = {
    "indexed": (lambda: Data(train=NUMBERS), {}),
    "indexed_workers": (lambda: Data(train=NUMBERS), {"workers": 1}),
    "by_length": (lambda: Data(train=NUMBERS, lengths=LENGTHS), {"cut": Cut.BY_LENGTH}),
    "by_tokens": (lambda: Data(train=NUMBERS, lengths=LENGTHS), {"cut": Cut.BY_LENGTH, "micro_tokens": 9}),
    "mixture": (lambda: Data(train=Mixture({"a": NUMBERS, "b": [1, 2, 3]})), {}),
    "stream": (lambda: Data(train=Plain(*range(23))), {}),
    "shards": (lambda: Data(train=ShardedWithState()), {}),
    "shards_workers": (lambda: Data(train=ShardedWithState()), {"workers": 2}),
    "own": (lambda: Data(train=Spells()), {}),
}
RANKS = 3


def declared(spec: Any, source: Reader, *, workers: int = 0, **batch: Any) -> Any:
    """In steps of 12 items, two micro-batches of 2 on each of three ranks."""
    loader = Loader(workers=workers, prefetch=2, source=source)
    cut = Batch(items=12, micro_items=2, accumulate=2, **batch)
    return replace(spec, batch=cut, loader=loader)


def values(steps: Any) -> list[Any]:
    return [(step.items, [(micro.batch.tolist(), micro.items) for micro in step.micro_batches]) for step in steps]


@pytest.mark.parametrize("kind", KINDS)
def test_each_rank_gets_what_it_would_have_read_itself(toy_spec: Any, kind: str) -> None:
    """Nine steps with a stop after four: more than an epoch, with its short step."""
    build, keys = KINDS[kind]

    def read(source: Reader) -> list[Any]:
        spec = declared(toy_spec, source, **keys)

        def rank(world: Any) -> Any:
            first = open_source(spec, build(), world)
            steps = values(islice(first, 4))
            resumed = open_source(spec, build(), world)
            resumed.load_state_dict(first.state_dict())
            assert resumed.position == first.position
            before = resumed.position
            steps += values(islice(resumed, 5))
            return steps, first.state_dict(), resumed.position, plan_at(resumed, before)

        return on_threads(RANKS, rank)

    by_themselves, from_rank_0 = read(Reader.EACH_RANK), read(Reader.RANK_0)
    assert from_rank_0 == by_themselves
    assert not any(isinstance(one, Exception) for one in from_rank_0), from_rank_0


@pytest.mark.parametrize("build", [lambda: NUMBERS[:20], lambda: Plain(*range(20)), ShardedWithState])
def test_an_evaluation_reads_each_item_once(toy_spec: Any, build: Any) -> None:
    """20 items in micro-batches of 2 on three ranks: the last round is not full."""

    def read(source: Reader) -> list[Any]:
        spec = declared(toy_spec, source)

        def rank(world: Any) -> Any:
            world.axes, world.along = toy_spec.strategy.axes(RANKS), lambda *axes: world
            micro_batches = Passes(spec, Data(train=NUMBERS), world).read(build(), "eval")
            return [(micro.batch.tolist(), micro.items) for micro in micro_batches]

        return on_threads(RANKS, rank)

    assert read(Reader.RANK_0) == read(Reader.EACH_RANK)


class Random:
    """Items that are drawn; tells from which thread."""

    def __init__(self) -> None:
        self.readers: set[int] = set()

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> Any:
        self.readers.add(threading.get_ident())
        return torch.rand(())


def test_drawn_numbers_are_those_of_workers_and_only_one_rank_reads(toy_spec: Any) -> None:
    def read(source: Reader, workers: int, data: Data) -> list[Any]:
        spec = declared(toy_spec, source, workers=workers)
        return on_threads(RANKS, lambda world: values(islice(open_source(spec, data, world), 3)))

    dataset, before = Random(), torch.get_rng_state()
    here = read(Reader.RANK_0, 0, Data(train=dataset))
    assert len(dataset.readers) == 1
    assert torch.equal(torch.get_rng_state(), before), "the rank's own generator is left alone"
    assert here == read(Reader.EACH_RANK, 1, Data(train=Random()))


def test_a_source_of_ones_own_that_reads_for_one_rank_only_is_refused(toy_spec: Any) -> None:
    spec = declared(toy_spec, Reader.RANK_0)
    error = on_threads(RANKS, lambda world: next(iter(open_source(spec, Data(train=SpellsAlone()), world))))[0]
    assert isinstance(error, DataError)
    assert str(error).startswith(
        "loader.source=rank_0: a step of 12 items came in 1 micro-batches with 12 items, for 3"
    )


HOOKS = """
import os
from dataclasses import dataclass
from pathlib import Path
import torch
from runner import Data
from user_hooks.points import Points, compute_loss

class Noted(Points):
    def __getitem__(self, index):
        Path(f"read_by_{os.environ['RANK']}").touch()
        return super().__getitem__(index)

@dataclass
class Batch:
    items: object

def collate(items):
    return Batch(torch.utils.data.default_collate(items))

def build_data():
    return Data(train=Noted(50, 0), eval=Noted(17, 1), collate=collate)

def loss(model, batch):
    return compute_loss(model, batch.items)

class Opaque:
    def __init__(self, items):
        self.items = items

def opaque():
    return Data(train=Noted(50, 0), eval=Noted(17, 1), collate=lambda items: Opaque(collate(items)))
"""
TRAIN = [
    "train",
    "points",
    "hardware=cpu",
    "strategy=ddp",
    "hardware.processes=2",
    "loss._target_=user_hooks.noted.loss",
]


def test_two_processes_train_alike_and_only_rank_0_reads(project: Path, runner: Callable[..., Ended]) -> None:
    """A batch that is a dataclass; steps of 12 of 50 items, so that the last one of an epoch is short."""
    (project / "user_hooks" / "noted.py").write_text(HOOKS)
    data = "data._target_=user_hooks.noted.build_data"
    each = runner(*TRAIN, data)
    assert {path.name for path in project.glob("read_by_*")} == {"read_by_0", "read_by_1"}
    for path in project.glob("read_by_*"):
        path.unlink()
    keys = ("loader.source=rank_0", "loader.workers=1", "loader.persistent_workers=true", "run.debug=true")
    one = runner(*TRAIN, data, *keys, "run.stop_at_step=7")
    one = runner("resume", str(one.run_dir.path), "loader.workers=0")
    assert {path.name for path in project.glob("read_by_*")} == {"read_by_0"}
    assert one.metrics() == each.metrics()
    refused = runner(*TRAIN, "data._target_=user_hooks.noted.opaque", "loader.source=rank_0", code=5)
    assert "DataError: loader.source=rank_0: the batch is a Opaque, which cannot be sent. Rank 0" in refused.stderr
