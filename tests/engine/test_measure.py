"""Means over many micro-batches: exact, in the memory of one, and without waiting for the device."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from runner.engine.measure import means
from runner.protocols import MicroBatchLoss
from runner.world.solo import SoloWorld
from tests.conftest import Ended

ALONE = SoloWorld(torch.device("cpu"))

ALIVE = """
import gc
import torch
from runner import Data
from user_hooks import points

evaluated = 0

def build_data():
    return Data(train=points.Points(12, 0), eval=points.Points(200, 1))

def compute_loss(model, batch):
    global evaluated
    if not model.training:
        evaluated += 1
        if evaluated in (20, 200):
            gc.collect()
            with open("alive.txt", "a") as file:
                print(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()), file=file)
    return points.compute_loss(model, batch)
"""


def weighed(number: Any) -> Iterator[Any]:
    """So many micro-batches, of which the first is a mean, the second a total, the third a filler, and so on."""
    generator = torch.Generator().manual_seed(0)
    for index in range(number):
        value, hits = torch.randn((), generator=generator), torch.randint(5, (), generator=generator)
        metrics = {"accuracy": (hits, 5), "share": (value.reshape(1), hits.bool())}
        yield (
            MicroBatchLoss(value, 7, 7, True),
            MicroBatchLoss(value, 1, hits, False, metrics),
            MicroBatchLoss(value, 0, 0, False),
        )[index % 3]


@pytest.mark.parametrize("on_device", [False, True])
def test_means_are_to_the_bit_those_of_python_floats(on_device: bool) -> None:
    sums = {"loss": [0.0, 0.0], "accuracy": [0.0, 0.0], "share": [0.0, 0.0]}
    for value, weight, count, _, metrics, _ in weighed(1000):
        for name, (more, counted) in {"loss": (value.item() * weight, count), **metrics}.items():
            sums[name][0] += float(more)
            sums[name][1] += float(counted)
    assert means(weighed(1000), ALONE, on_device=on_device) == {
        name: total / count for name, (total, count) in sums.items()
    }


def test_evaluation_holds_as_many_tensors_at_its_end_as_at_its_beginning(
    project: Path, runner: Callable[..., Ended]
) -> None:
    (project / "user_hooks" / "alive.py").write_text(ALIVE)
    hooks = ["data._target_=user_hooks.alive.build_data", "loss._target_=user_hooks.alive.compute_loss"]
    runner("train", "points", *hooks, "eval.micro_items=1", "eval.every_steps=1", "run.steps=1")
    early, late = map(int, (project / "alive.txt").read_text().split())
    assert early == late


class _Reads(TorchDispatchMode):
    """Counts how often the host asks for a number."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_host_reads_sums_and_not_micro_batches() -> None:
    with _Reads() as reads:
        means(weighed(300), ALONE, on_device=True)
    assert reads.number == 5  # total and count of loss, accuracy and share; of accuracy the count is no tensor


def test_a_metric_that_a_model_keeps_is_added_as_it_is_at_that_moment() -> None:
    kept = torch.zeros((), requires_grad=True)

    def losses() -> Iterator[Any]:
        for _ in range(3):
            yield MicroBatchLoss(torch.ones(()), 1, 1, False, {"kept": (kept, 1)})
            kept.data += 1

    assert means(losses(), ALONE, on_device=True)["kept"] == (0 + 1 + 2) / 3
