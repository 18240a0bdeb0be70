"""Outputs of every rank, brought to rank 0 in the order of the dataset."""

from pathlib import Path
from typing import Any

import pytest
import torch

from runner.metric import collected
from runner.metric.collected import in_dataset_order, joined
from tests.strategy.ranks import on_ranks

ROWS, MICRO_BATCHES = 25, 13
"""Micro-batch n belongs to rank n % 3."""


def collect(world: Any) -> Any:
    sent: list[int] = []
    gather = world.gather_on_main

    def noted(value: Any) -> Any:
        sent.append(sum(one["x"].nbytes for one in value))
        return gather(value)

    world.gather_on_main = noted
    own: list[Any] = [
        {"x": torch.full((ROWS,), n), "text": [f"{n}"]} for n in range(MICRO_BATCHES) if n % world.size == world.rank
    ]
    ordered = in_dataset_order(world, own)
    return sent, len(own), [(one["x"][0].item(), one["text"]) for one in ordered]


def test_ranks_send_pieces_and_rank_0_alone_has_them_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collected, "PIECE_BYTES", 600)  # two micro-batches of 264
    first, *others = on_ranks(3, collect, scratch=tmp_path, timeout_s=30)
    assert first[2] == [(n, [f"{n}"]) for n in range(MICRO_BATCHES)]
    assert first[0] == [400, 400, 200]
    assert [other[1:] for other in others] == [(0, []), (0, [])]
    assert others[0][0] == [400, 400, 0], "as many pieces as the rank with the most"


def test_items_of_unequal_shapes_are_joined_as_a_list() -> None:
    parts = [{"x": torch.zeros(2, 3), "w": ["a", "b"]}, {"x": torch.ones(1, 4), "w": ["c"]}]
    whole = joined(parts)
    assert [tuple(one.shape) for one in whole["x"]] == [(3,), (3,), (4,)]
    assert whole["w"] == ["a", "b", "c"]
    assert parts == [{}, {}], "what is joined is no longer held a second time"
    assert joined([{"x": torch.zeros(2, 3)}, {"x": torch.ones(1, 3)}])["x"].shape == (3, 3)
