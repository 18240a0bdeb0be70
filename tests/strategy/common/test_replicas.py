"""Steps compiled as a whole on two ranks under DDP are those of a hand-written loop over the whole batch."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from runner.config.of_blocks import Compile
from runner.errors import HookError
from runner.model.compiling import compile_function
from runner.optimizer.sgd import SGD
from runner.protocols import Clip, MicroBatch, StepBatches, StepGraphs
from runner.strategy.ddp import DDP
from tests.conftest import Ended
from tests.strategy.common.test_step_graph import AOT, COUNTS, NET, STEPS, X, Y, by_hand, mean_loss, token_loss
from tests.strategy.ranks import builder, model_of, on_ranks

LIMIT = 0.05
CLIP = Clip(norm=LIMIT)
RATE, MOMENTUM = 0.3, 0.9
SMALL_BUCKETS = DDP(bucket_mibs=[1e-4, 1e-3])
"""Two: of the last layer, and of the first."""


def trained_net() -> Any:
    """Without the parameter that no loss depends on."""
    net = copy.deepcopy(NET)
    del net.unused
    return net


def normalizing_net() -> Any:
    """The same with a batch normalization at its end."""
    net = trained_net()
    net.normed = nn.BatchNorm1d(3)
    return net


def trainable_of(world: Any, how: Compile, loss: Any, strategy: DDP, build: Callable[[], nn.Module]) -> Any:
    optimizer = SGD(lr=RATE, momentum=MOMENTUM)
    graphs = StepGraphs(partial(compile_function, part=how), optimizer.graph_update())
    made = builder(build=build, optimizer=partial(optimizer.build, items=12), loss=loss, clip=CLIP, step_graphs=graphs)
    return strategy.prepare(made, world)


def own_batches(world: Any, step: int) -> StepBatches:
    """The rank's part of 12 items: two rounds of four, and one of four with a round that only keeps step."""
    rounds = (((0, 4), 4), ((4, 8), 4)) if world.rank == 0 else (((8, 12), 4), ((8, 9), 0))
    parts = [(slice(*ends), items) for ends, items in rounds]
    return StepBatches([MicroBatch((X[step][part], Y[step][part], COUNTS[part]), items) for part, items in parts], 12)


def take_steps(world: Any, how: Compile, loss: Any) -> Any:
    """What the steps of a rank end with."""
    trainable = trainable_of(world, how, loss, SMALL_BUCKETS, trained_net)
    taken = [trainable.take_step(own_batches(world, step), measure=True) for step in range(STEPS)]
    norms = [update.grad_norm for _, update in taken]
    values = [sum(loss.value * loss.weight for loss in step.losses).item() for step, _ in taken]
    return norms, values, float(taken[-1][0].count), model_of(trainable).state_dict()


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's, in inductor
@pytest.mark.parametrize("loss", [mean_loss, token_loss])
@pytest.mark.parametrize("how", [AOT, pytest.param(Compile(), marks=pytest.mark.exhaustive)])
def test_weights_and_norms_are_those_of_one_process(how: Compile, loss: Any, tmp_path: Path) -> None:
    ranks = on_ranks(2, take_steps, how, loss, scratch=tmp_path, timeout_s=200)
    model = trained_net()
    expected = by_hand(loss, torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM), model, CLIP)
    for norms, _, count, weights in ranks:
        assert_close(norms, expected, rtol=1e-5, atol=1e-6)
        assert count == (12 if loss is mean_loss else int(COUNTS.sum()))
        assert weights.keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert torch.equal(weights[name], ranks[0][3][name])
            assert_close(weights[name], tensor, rtol=0, atol=2e-6, msg=name)
    totals = [sum(values) for values in zip(*(values for _, values, _, _ in ranks), strict=True)]
    again = trained_net()
    first = loss(again, (X[0], Y[0], COUNTS))
    whole = 12 * first if isinstance(first, Tensor) else first.total
    assert totals[0] == pytest.approx(whole.item(), rel=1e-6)


def normalized(model: Any, batch: Any) -> Tensor:
    """The loss of such a net."""
    x, y, _ = batch
    return nn.functional.cross_entropy(model.normed(model(x)), y)


def with_batch_norm(world: Any) -> Any:
    """Weights and buffers of a rank, and those of a loop with torch's DDP, which broadcasts buffers, too."""
    trainable = trainable_of(world, Compile(backend="eager"), normalized, DDP(), normalizing_net)
    model = normalizing_net()
    wrapped = nn.parallel.DistributedDataParallel(LossOf(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    part = slice(0, 6) if world.rank == 0 else slice(6, 12)
    for step in range(STEPS):
        batch = (X[step][part], Y[step][part], COUNTS[part])
        trainable.take_step(StepBatches([MicroBatch(batch, 6)], 12), measure=False)
        wrapped(batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
        optimizer.step()
        optimizer.zero_grad()
    return model_of(trainable).state_dict(), model.state_dict()


class LossOf(nn.Module):
    """Calls the loss inside a forward, where DDP broadcasts buffers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> Tensor:
        return normalized(self.model, batch)


def test_each_step_begins_with_the_buffers_of_rank_0(tmp_path: Path) -> None:
    of_ranks = on_ranks(2, with_batch_norm, scratch=tmp_path)
    for ours, theirs in of_ranks:
        for name, tensor in theirs.items():
            assert_close(ours[name], tensor, rtol=0, atol=2e-6, msg=name)
    assert not torch.equal(*(ours["normed.running_mean"] for ours, _ in of_ranks))


def uses_one_layer_less(world: Any) -> str:
    def loss(model: Any, batch: Any) -> Tensor:
        x, y, _ = batch
        hidden = torch.tanh(model.first(x))
        logits = hidden[:, :3] if world.rank == 1 and len(x) == 5 else model.last(hidden)
        return nn.functional.cross_entropy(logits, y)

    trainable = trainable_of(world, Compile(backend="eager"), loss, DDP(), trained_net)
    for step, items in enumerate((6, 5)):
        part = slice(0, items)
        batch = MicroBatch((X[step][part], Y[step][part], COUNTS[part]), items)
        try:
            trainable.take_step(StepBatches([batch], 2 * items), measure=False)
        except HookError as error:
            return str(error)
    return ""


def test_a_parameter_without_a_gradient_on_one_rank_is_told(tmp_path: Path) -> None:
    of_0, of_1 = on_ranks(2, uses_one_layer_less, scratch=tmp_path)
    assert not of_0
    assert "the loss on rank 1 does not depend on last.weight, last.bias" in of_1
    assert "strategy.find_unused_parameters=true" in of_1


def test_a_resumed_run_repeats_the_uninterrupted_one(runner: Callable[..., Ended]) -> None:
    words = ["compile.what=step", "compile.backend=eager", "strategy=ddp", "hardware=cpu", "hardware.processes=2"]
    words += ["model.dropout=0.3", "batch.micro_items=3", "run.steps=8", "schedule=cosine"]
    whole = runner("train", "points", *words).metrics()
    begun = runner("train", "points", *words, "run.stop_at_step=4")
    resumed = runner("resume", str(begun.run_dir.path), "run.stop_at_step=null")
    assert resumed.metrics() == whole


@pytest.mark.parametrize(
    "word",
    ["strategy.find_unused_parameters=true", "strategy.sync_each_round=true", "strategy.comm_hook=bf16"],
)
def test_what_a_graph_does_not_exchange_is_a_fault(runner: Callable[..., Ended], word: str) -> None:
    words = ["compile.what=step", "strategy=ddp", "hardware=cpu", "hardware.processes=2", word]
    ended = runner("check", "points", *words, code=2)
    assert f"{word.partition('=')[0]}: compile.what=step sums up gradients inside its graph" in ended.stderr
