"""Law 3 over real ranks: any cut of the same items into ranks, rounds and micro-batches gives the same weights."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from runner.optimizer.sgd import SGD
from runner.protocols import Clip, MicroBatch, StepBatches
from runner.strategy.ddp import DDP
from runner.strategy.fsdp import FSDP
from tests.strategy.common.test_module_trainable import COUNTS, MODEL, ROUNDING, X, Y, by_hand, mean_loss, token_loss
from tests.strategy.ranks import builder, model_of, on_ranks

ITEMS = len(X)
CLIP = Clip(norm=0.05)
# The same examples on every rank, and none tried anew on one alone: each is a collective.
ALIKE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=20,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@st.composite
def cuts(draw: Any, num_ranks: Any) -> Any:
    """Items of each micro-batch, by rank and round; 0 = a filler, which a rank without items runs along with."""
    rounds = draw(st.integers(1, 4))
    edges = sorted(
        draw(st.lists(st.integers(0, ITEMS), min_size=rounds * num_ranks - 1, max_size=rounds * num_ranks - 1))
    )
    lengths = [last - first for first, last in zip([0, *edges], [*edges, ITEMS], strict=True)]
    return [lengths[rank * rounds : (rank + 1) * rounds] for rank in range(num_ranks)]


def partition(cut: Any, rank: Any) -> Any:
    """What a rank gets of the step that is cut so."""
    rounds, first = [], sum(map(sum, cut[:rank]))
    for length in cut[rank]:
        part = slice(first, first + length) if length else slice(0, 1)
        rounds.append(MicroBatch((X[part], Y[part], COUNTS[part]), length))
        first += length
    return StepBatches(rounds, ITEMS)


def whole(tensor: Any) -> Any:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def any_cut(world: Any, strategy: Any, loss: Any) -> None:
    """Two steps of every cut that is drawn, beside the hand-written loop over one large batch."""
    expected, _ = by_hand(loss, steps=2, clip=CLIP)

    @ALIKE
    @given(cut=cuts(world.size))
    def check(cut: Any) -> None:
        assert world.gather_objects(cut) == [cut] * world.size
        trainable = strategy.prepare(
            builder(
                build=lambda: copy.deepcopy(MODEL),
                optimizer=partial(SGD(lr=0.1).build, items=ITEMS),
                loss=loss,
                clip=CLIP,
            ),
            world,
        )
        for _ in range(2):
            trainable.forward_backward(partition(cut, world.rank))
            trainable.update(measure=False)
        assert_close(
            [whole(parameter.detach()) for parameter in model_of(trainable).parameters()], expected, **ROUNDING
        )

    check()


@pytest.mark.parametrize("loss", [mean_loss, token_loss])
@pytest.mark.parametrize(
    ("strategy", "num_ranks"), [(DDP(), 2), (FSDP(), 2), pytest.param(DDP(), 3, marks=pytest.mark.exhaustive)]
)
def test_any_cut_into_ranks_rounds_and_micro_batches_is_the_step_of_one_large_batch(
    strategy: Any, num_ranks: int, loss: Any, tmp_path: Path
) -> None:
    on_ranks(num_ranks, any_cut, strategy, loss, scratch=tmp_path / "ranks", timeout_s=100)
