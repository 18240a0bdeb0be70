"""Two real ranks on gloo: shards, replicas, and another number of ranks at the other end."""

from pathlib import Path

import pytest
import torch

from runner.checkpoint.sharded import Sharded
from runner.protocols import Progress
from runner.storage.names import to_names
from runner.world.solo import SoloWorld
from tests.checkpoint.conftest import OnTwoRanks
from tests.storage.states import open_latest, state_of

EXPECTED = {
    "model.0.weight": torch.arange(1.0, 16.0).reshape(5, 3),
    "model.0.bias": torch.arange(1.0, 6.0),
    "model.1.weight": torch.arange(1.0, 6.0).reshape(1, 5),
    "model.1.bias": torch.ones(1),
}


@pytest.mark.parametrize("save", ["save_sharded", "save_full", "save_later"])
def test_shards_of_two_ranks_load_on_one_and_on_two(
    save: str, tmp_path: Path, world: SoloWorld, on_two_ranks: OnTwoRanks
) -> None:
    on_two_ranks(save, tmp_path)
    tensors = {name: torch.zeros_like(tensor) for name, tensor in EXPECTED.items()}
    saved = open_latest(tmp_path, world)
    saved.read(state_of(tensors))
    assert all(torch.equal(tensors[name], tensor) for name, tensor in EXPECTED.items())
    names = {*EXPECTED, "optimizer.0.bias.step", "rng.rank_0.torch", "rng.rank_1.torch"}
    assert to_names(saved.stored).keys() == names
    on_two_ranks("load_sharded", tmp_path)


def test_what_one_rank_saved_loads_into_shards_of_two(
    tmp_path: Path, world: SoloWorld, on_two_ranks: OnTwoRanks
) -> None:
    generators = {f"rng.rank_{rank}.torch": torch.full((4,), rank, dtype=torch.uint8) for rank in range(2)}
    state = state_of({**EXPECTED, **generators}, {"epoch": 2})
    Sharded().open(tmp_path, world).save(state, progress=Progress(step=5, position=50), metrics={})
    on_two_ranks("load_sharded", tmp_path)


@pytest.mark.parametrize("scenario", ["replicated", "one_fails", "later_fails_on_one"])
def test_two_ranks_agree(scenario: str, tmp_path: Path, on_two_ranks: OnTwoRanks) -> None:
    on_two_ranks(scenario, tmp_path)


@pytest.mark.parametrize("when", ["at_once", "later"])
def test_what_changes_between_saves_is_planned_anew(when: str, tmp_path: Path, on_two_ranks: OnTwoRanks) -> None:
    on_two_ranks("changes_between_saves", tmp_path / when)
