"""batch.cut=by_length under real padding: the same losses, with less of it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from runner.data.lengths import lengths_of
from runner.data.order import Shuffled
from runner.data.steps import RankSteps
from tests.conftest import Ended
from user_hooks.pydoc_pairs import PADDING, build_data

TRAIN = ("train", "pydoc_pairs", "run.steps=6", "batch.items=24", "log.every_steps=1", "eval.at_end=false")


def losses(ended: Ended) -> list[float]:
    return [line["train/loss"] for line in ended.metrics() if "train/loss" in line]


def test_another_cut_is_the_same_training(runner: Callable[..., Ended]) -> None:
    even = losses(runner(*TRAIN, "batch.micro_items=6"))
    assert len(even) == 6
    by_length = losses(runner(*TRAIN, "batch.micro_items=6", "batch.cut=by_length"))
    ranks = ("strategy=ddp", "hardware.processes=2")
    by_tokens = losses(runner(*TRAIN, *ranks, "batch.cut=by_length", "batch.micro_tokens=90"))
    assert by_length == pytest.approx(even, rel=1e-6)
    assert by_tokens == pytest.approx(even, rel=1e-6)


def padding(**cut: object) -> float:
    """The share of padding among all words of the first 40 steps, both sentences of each pair."""
    data = build_data(vocabulary=512)
    steps = RankSteps(
        order=Shuffled(len(data.train), seed=0), step_items=32, micro_items=8, rank=0, ranks=1, **cut
    ).starting_at(0)
    words = padded = 0
    for _ in range(40):
        for micro in next(steps).micro_batches:
            assert data.collate is not None
            sentences: list[Tensor] = list(data.collate([data.train[index] for index in micro.indices])[:2])
            words += sum(sentence.numel() for sentence in sentences)
            padded += sum(int(torch.sum(sentence == PADDING)) for sentence in sentences)
    return padded / words


def test_alike_lengths_need_less_padding() -> None:
    lengths = lengths_of(build_data(vocabulary=512), micro_tokens=None)
    assert padding(lengths=lengths) < 0.7 * padding()
