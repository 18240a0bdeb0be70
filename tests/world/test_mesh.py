"""The mesh: who is whose peer along which axis, by arithmetic, by torch's DeviceMesh, and on real ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import RankError
from runner.protocols import Axes, Axis
from runner.protocols.mesh import ALONE
from runner.world.rehearsal import rehearsal
from runner.world.solo import SoloWorld
from tests.strategy.ranks import on_ranks

CPU = torch.device("cpu")
TWO_BY_TWO = Axes(names=(Axis.REPLICATE, Axis.TENSOR), sizes=(2, 2), data=(Axis.REPLICATE,))


def test_tensor_peers_read_the_same_items() -> None:
    """Ranks 0 to 3 of data × tensor = 2 × 2 have the data ranks 0, 0, 1, 1: the innermost axis moves first."""
    groups = TWO_BY_TWO.groups(TWO_BY_TWO.data)
    assert groups == [[0, 2], [1, 3]]
    assert [next(group.index(rank) for group in groups if rank in group) for rank in range(4)] == [0, 0, 1, 1]
    assert TWO_BY_TWO.data_ranks == 2
    assert TWO_BY_TWO.groups([Axis.TENSOR]) == [[0, 1], [2, 3]]


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), chosen=st.sets(st.sampled_from(list(Axis))))
def test_groups_are_those_of_torchs_mesh(sizes: Any, chosen: Any) -> None:
    names = tuple(Axis)[: len(sizes)]
    axes = Axes(names=names, sizes=tuple(sizes), data=names[:1])
    ranks = torch.arange(axes.size(names)).reshape(sizes)
    along = [dim for dim, name in enumerate(names) if name in chosen]
    others = [dim for dim in range(len(names)) if dim not in along]
    expected = ranks.permute(*others, *along).reshape(-1, axes.size(chosen)).tolist()
    assert sorted(axes.groups(chosen)) == sorted(expected)


def test_loss_is_summed_and_random_numbers_differ_where_ranks_compute_different_parts() -> None:
    names = (Axis.PIPELINE, Axis.SHARD, Axis.CONTEXT, Axis.TENSOR)
    axes = Axes(names=names, sizes=(2, 3, 4, 5), data=(Axis.SHARD,), partial=(Axis.PIPELINE, Axis.CONTEXT))
    assert axes.data_ranks == 3
    assert axes.loss == (Axis.PIPELINE, Axis.SHARD, Axis.CONTEXT)
    assert axes.random == (Axis.SHARD, Axis.CONTEXT)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sizes": (2,)}, "must name each axis once"),
        ({"names": (Axis.SHARD, Axis.SHARD)}, "must name each axis once"),
        ({"sizes": (2, 0)}, "must all be at least 1"),
        ({"data": (Axis.EXPERT,)}, "name {<Axis.EXPERT"),
    ],
)
def test_axes_that_cannot_be_are_refused(fields: Any, words: str) -> None:
    plain = {"names": (Axis.REPLICATE, Axis.SHARD), "sizes": (2, 2), "data": (Axis.SHARD,)}
    with pytest.raises(ValueError, match=words):
        Axes(**plain | fields)


def seen_along(world: Any) -> Any:
    """What one rank sees along each axis, by sums, broadcasts and objects."""
    found: dict[str, Any] = {"run": (world.rank, world.size)}
    for name, axes in {"data": world.axes.data, "tensor": [Axis.TENSOR], "both": world.axes.names, "none": []}.items():
        peers = world.along(*axes)
        mine = torch.tensor([float(world.rank)])
        first = mine.clone()
        peers.broadcast(first)
        found[name] = (
            (peers.rank, peers.size),
            peers.sum(mine).item(),
            first.item(),
            peers.gather_objects(world.rank),
            peers.broadcast_object(world.rank),
            peers.any(world.rank == 3),
        )
        peers.barrier()
        assert world.along(*axes) is peers
    found["mesh"] = (world.mesh().get_local_rank("replicate"), world.mesh().get_local_rank("tensor"))
    found["duplicate"] = world.along(Axis.TENSOR).duplicate().gather_objects(world.rank)
    return found


def test_every_collective_stays_among_the_peers(tmp_path: Path) -> None:
    answers = on_ranks(4, seen_along, scratch=tmp_path, axes=TWO_BY_TWO)
    for rank, found in enumerate(answers):
        data, tensor = divmod(rank, 2)
        columns, rows = [tensor, tensor + 2], [2 * data, 2 * data + 1]
        assert found["run"] == (rank, 4)
        assert found["mesh"] == (data, tensor)
        assert found["data"] == ((data, 2), sum(columns), columns[0], columns, columns[0], 3 in columns)
        assert found["tensor"] == ((tensor, 2), sum(rows), rows[0], rows, rows[0], 3 in rows)
        assert found["both"] == ((rank, 4), 6.0, 0.0, [0, 1, 2, 3], 0, True)
        assert found["none"] == ((0, 1), float(rank), float(rank), [rank], rank, rank == 3)
        assert found["duplicate"] == rows


def test_a_world_of_one_has_no_mesh() -> None:
    with pytest.raises(RankError, match="but the run has only one process"):
        SoloWorld(CPU).mesh()
    assert SoloWorld(CPU).axes == ALONE


def imagined(world: Any) -> Any:
    """Where a rehearsal places this rank, and that nothing it does reaches another."""
    alone = rehearsal(world)
    peers = alone.along(Axis.TENSOR)
    return (alone.rank, alone.size), (peers.rank, peers.size), peers.sum(torch.tensor(1.0)).item(), alone.any(False)


def test_a_rehearsal_has_the_shape_of_the_run_and_meets_nobody(tmp_path: Path) -> None:
    answers = on_ranks(4, imagined, scratch=tmp_path, axes=TWO_BY_TWO)
    assert answers == [((rank, 4), (rank % 2, 2), 1.0, False) for rank in range(4)]
