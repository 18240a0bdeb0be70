"""Batches of any nesting on their way to the device."""

from collections import ChainMap, OrderedDict, UserDict, defaultdict
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.data import default_collate

from runner.data.loader import load
from runner.data.moving import SideStream, mover, to_device
from runner.data.source import loader_options
from runner.data.steps import single_pass
from runner.protocols import Data
from runner.world.solo import SoloWorld

CPU = torch.device("cpu")


class Pair(NamedTuple):
    x: torch.Tensor
    name: str


class Encoding(UserDict[str, Any]):
    """A batch object that moves itself, as transformers' BatchEncoding does."""

    def to(self, device: Any, *, non_blocking: Any) -> Any:
        return Encoding(
            {key: value.to(device, non_blocking=non_blocking) for key, value in self.items()} | {"moved": 1}
        )


@dataclass(frozen=True)
class Views:
    """A batch as a dataclass, with a field of its own making."""

    image: torch.Tensor
    names: list[str]
    mean: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", self.image.mean())


@dataclass(slots=True)
class Slots:
    image: torch.Tensor


META = torch.device("meta")


def test_nested_batches_keep_their_shape_when_they_move() -> None:
    batch = {"pair": Pair(torch.ones(2), "a"), "list": [torch.ones(1), 3], "own": Encoding(x=torch.ones(3))}
    moved = to_device(batch, META, non_blocking=False)
    assert (moved["pair"].x.device, moved["pair"].name) == (META, "a")
    assert (moved["list"][0].device, moved["list"][1]) == (META, 3)
    assert moved["own"]["x"].device == META
    assert moved["own"]["moved"] == 1


def test_a_dataclass_is_a_batch() -> None:
    one = Views(torch.ones(2), ["a", "b"])
    moved = to_device({"views": one, "slots": (Slots(torch.ones(1)),)}, META, non_blocking=False)
    assert isinstance(moved["views"], Views)
    assert (moved["views"].image.device, moved["views"].mean.device, moved["views"].names) == (META, META, ["a", "b"])
    assert moved["slots"][0].image.device == META
    assert one.image.device == CPU, "the batch itself stays where it is"


def test_a_mapping_of_any_class_keeps_its_class() -> None:
    counts: Any = defaultdict(int, x=torch.ones(1))
    batch = [
        counts,
        OrderedDict(x=torch.ones(1)),
        MappingProxyType({"x": torch.ones(1)}),
        ChainMap({"x": torch.ones(1)}),
    ]
    moved = to_device(batch, META, non_blocking=False)
    assert [type(one) for one in moved] == [defaultdict, OrderedDict, MappingProxyType, ChainMap]
    assert all(one["x"].device == META for one in moved)
    assert moved[0]["y"] == 0, "with its factory"
    assert counts["x"].device == CPU


def test_nothing_moves_on_the_cpu(toy_spec: Any) -> None:
    """Not even a copy: the loss hook gets the object that collate returned."""
    made: list[Any] = []

    def collate(items: list[Any]) -> Any:
        made.append(default_collate(items))
        return made[-1]

    options = loader_options(toy_spec, Data(train=[1.0], collate=collate), SoloWorld(CPU))
    assert options.move is None
    (one,) = load([1.0, 2.0], single_pass(2, micro_items=2, rank=0, ranks=1), options, seed=0)
    assert one.batch is made[0]


def test_a_device_without_streams_gets_the_batch_before_the_step() -> None:
    move = mover(META, asynchronous=False)
    assert move is not None
    assert move({"x": torch.ones(1)})["x"].device == META


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_next_batch_is_copied_while_the_device_computes() -> None:
    """A copy that is begun during a long computation ends before it, and what is computed next sees it."""
    device = torch.device("cuda", 0)
    move = SideStream(device)
    batch: dict[str, Any] = {
        "x": torch.arange(1 << 20, dtype=torch.float32).pin_memory(),
        "own": Encoding(x=torch.ones(3)),
    }
    move(batch)  # the first one allocates
    matrix = torch.rand(4096, 4096, device=device)
    computed, copied = torch.cuda.Event(), torch.cuda.Event()
    for _ in range(200):
        matrix = torch.tanh(matrix @ matrix)
    computed.record()
    moved = move(batch)
    copied.record(move._stream)
    copied.synchronize()
    assert not computed.query(), "the copy did not wait for the computation"
    x: Any = batch["x"]
    assert torch.equal((moved["x"] + 1).cpu(), x + 1)
    assert moved["own"]["x"].device == device
