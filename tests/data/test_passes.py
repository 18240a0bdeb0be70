"""Passes over an evaluation set: by workers that stay, or by new ones."""

import os
from dataclasses import replace
from typing import Any

import pytest

from runner.config.run_spec import Loader
from runner.data.passes import Passes
from runner.protocols import Data
from runner.world.solo import SoloWorld
from tests.data.streams import CPU


class Processes:
    """Ten items: the index, and the process that reads it."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return index, os.getpid()


@pytest.mark.parametrize("stay", [True, False])
def test_workers_stay_between_passes_if_asked_to(toy_spec: Any, stay: bool) -> None:
    spec = replace(toy_spec, loader=Loader(workers=1, prefetch=2, persistent_workers=stay))
    dataset = Processes()
    passes = Passes(spec, Data(train=dataset), SoloWorld(CPU))
    readers = []
    for _ in range(2):
        micro_batches = [*passes.read(dataset, "eval")]
        assert [index for micro in micro_batches for index in micro.batch[0].tolist()] == [*range(10)]
        assert sum(micro.items for micro in micro_batches) == 10
        (reader,) = {pid for micro in micro_batches for pid in micro.batch[1].tolist()}
        readers.append(reader)
    assert (readers[0] == readers[1]) is stay
    assert os.getpid() not in readers
