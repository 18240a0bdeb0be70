"""A model that is placed without an optimizer: its losses are the hook's, and its weights travel by their own names."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor, nn

from runner import Loss
from runner.checkpoint.sharded import Sharded
from runner.errors import CheckpointError
from runner.protocols import MicroBatch, Placed, Progress, State, Strategy, World
from runner.protocols.state import MODEL
from runner.strategy.ddp import DDP
from runner.strategy.deepspeed import DeepSpeed
from runner.strategy.fsdp import FSDP
from runner.strategy.single import Single
from runner.world.solo import SoloWorld
from tests.storage.states import open_latest
from tests.strategy.ranks import builder, model_of, on_ranks

SOLO = SoloWorld(torch.device("cpu"))
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed")
CUT = DeepSpeed(stage=3, param_persistence_threshold=0)
PAIRS = [
    pytest.param(DDP(), id="ddp"),
    pytest.param(FSDP(), id="fsdp"),
    pytest.param(DeepSpeed(stage=1), id="zero1", marks=needs_deepspeed),
    pytest.param(CUT, id="zero3", marks=needs_deepspeed),
]
X = torch.arange(24.0).reshape(8, 3) / 10
Y = torch.arange(8.0).reshape(8, 1) / 5
COUNTS = torch.tensor([1, 5, 2, 0, 3, 1, 4, 1])
ROUNDING = {"rel": 1e-6}  # sums of eight terms in float32, in another order


def model_with(factor: float) -> nn.Sequential:
    """Known weights: element n of a tensor is factor × sin(n + 1). Its dropout must be off in an evaluation."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(factor * torch.arange(1.0, 1.0 + parameter.numel()).sin().reshape(parameter.shape))
    return model


def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Loss:
    x, y, counts = batch
    return Loss((((model(x) - y) ** 2).squeeze(1) * counts).sum(), counts.sum())


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, y, _ = batch
    return ((model(x) - y) ** 2).mean()


def by_hand(factor: float, items: slice) -> tuple[float, int]:
    """The total and the count of these items in plain torch operations."""
    weights = model_with(factor).state_dict()
    hidden = torch.tanh(X[items] @ weights["0.weight"].T + weights["0.bias"])
    error = hidden @ weights["3.weight"].T + weights["3.bias"] - Y[items]
    return float((error.squeeze(1).square() * COUNTS[items]).sum()), int(COUNTS[items].sum())


def no_optimizer(parameters: Iterable[tuple[str, nn.Parameter]]) -> NoReturn:
    raise AssertionError("place() builds no optimizer")


def place(strategy: Strategy, world: World, *, factor: float = 1.0, hook: Any = loss) -> Placed:
    return strategy.place(builder(build=lambda: model_with(factor), optimizer=no_optimizer, loss=hook), world)


def cut(items: slice, length: int) -> list[MicroBatch]:
    """These items in micro-batches of this length, and a filler after them."""
    starts = range(items.start, items.stop, length)
    parts = [slice(start, min(start + length, items.stop)) for start in starts]
    filler = MicroBatch((X[:1], Y[:1], COUNTS[:1]), 0)
    return [MicroBatch((X[part], Y[part], COUNTS[part]), part.stop - part.start) for part in parts] + [filler]


def measured(placed: Placed, items: slice) -> tuple[float, int]:
    """Total and count over these items, two at a time."""
    losses = list(placed.evaluate(cut(items, 2)))
    assert not any(one.value.requires_grad for one in losses)
    return sum(float(one.value) * one.weight for one in losses), sum(int(one.count) for one in losses)


def share_of(world: World) -> slice:
    """Four items of rank 0, or of each of two."""
    length = len(X) // world.size
    return slice(world.rank * length, (world.rank + 1) * length)


def save(placed: Placed, run_dir: Path, world: World) -> None:
    Sharded().open(run_dir, world).save(placed.state_dict(), progress=Progress(step=1, position=8), metrics={})


def saved_weights(run_dir: Path) -> dict[str, Tensor]:
    """Every tensor of the checkpoint's model, whole."""
    checkpoint = open_latest(run_dir, SOLO)
    assert checkpoint.stored.optimizers == {}
    state = {name: torch.empty(one.shape, dtype=one.dtype) for name, one in checkpoint.stored.models[MODEL].items()}
    checkpoint.read(State(models={MODEL: state}))
    return state


# ── Evaluation ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("strategy", [Single(), DDP(), FSDP()])
def test_one_process_measures_the_hooks_loss_without_an_optimizer(strategy: Strategy) -> None:
    placed = place(strategy, SOLO)
    total, count = by_hand(1.0, slice(0, 8))
    assert measured(placed, slice(0, 8)) == (pytest.approx(total, **ROUNDING), count)
    assert count == 17
    (whole, _) = placed.evaluate(cut(slice(0, 8), 8))
    model = model_with(1.0).eval()
    assert torch.equal(whole.value, loss(model, (X, Y, COUNTS)).total), "one micro-batch is the hook itself, to the bit"
    assert all(parameter.grad is None for parameter in model_of(placed).parameters())


def test_a_mean_weighs_by_items_and_a_filler_by_none() -> None:
    means = list(place(Single(), SOLO, hook=mean_loss).evaluate(cut(slice(0, 8), 3)))
    assert [(one.weight, one.count) for one in means] == [(3, 3), (3, 3), (2, 2), (0, 0)]
    model = model_with(1.0).eval()
    mean = mean_loss(model, (X, Y, COUNTS)).item()
    assert sum(float(one.value) * one.weight for one in means) / 8 == pytest.approx(mean, **ROUNDING)


def test_a_module_that_the_user_put_in_evaluation_mode_stays_there() -> None:
    placed = place(Single(), SOLO)
    model_of(placed).train()
    model_of(placed)[2].eval()
    modes = [[module.training for module in model_of(placed).modules()]]
    for _ in placed.evaluate(cut(slice(0, 8), 4)):
        assert not any(module.training for module in model_of(placed).modules())
    modes.append([module.training for module in model_of(placed).modules()])
    assert modes == [[True, True, True, False, True]] * 2


def evaluated(world: World, strategy: Strategy) -> tuple[float, int]:
    return measured(place(strategy, world), share_of(world))


@pytest.mark.parametrize("strategy", PAIRS)
def test_each_of_two_ranks_measures_the_hooks_loss_of_its_items(strategy: Strategy, tmp_path: Path) -> None:
    found = on_ranks(2, evaluated, strategy, scratch=tmp_path / "ranks")
    for (total, count), items in zip(found, (slice(0, 4), slice(4, 8)), strict=True):
        expected = by_hand(1.0, items)
        assert (total, count) == (pytest.approx(expected[0], **ROUNDING), expected[1])


# ── Weights ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def saved_and_read(world: World, strategy: Strategy, theirs: Path, ours: Path) -> tuple[float, int]:
    """Save the weights 1 × sin; read the weights 2 × sin that one process has saved, and evaluate them."""
    placed = place(strategy, world)
    save(placed, ours, world)
    placed.load_state_dict(open_latest(theirs, world))
    return measured(placed, share_of(world))


@pytest.mark.parametrize("strategy", PAIRS)
def test_weights_of_two_ranks_are_saved_and_read_by_the_models_own_names(strategy: Strategy, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    save(place(Single(), SOLO, factor=2.0), theirs, SOLO)
    found = on_ranks(2, saved_and_read, strategy, theirs, ours, scratch=tmp_path / "ranks")
    for (total, count), items in zip(found, (slice(0, 4), slice(4, 8)), strict=True):
        expected = by_hand(2.0, items)
        assert (total, count) == (pytest.approx(expected[0], **ROUNDING), expected[1])
    written, expected_weights = saved_weights(ours), model_with(1.0).state_dict()
    assert written.keys() == expected_weights.keys()
    for name, tensor in expected_weights.items():
        assert torch.equal(written[name], tensor), name


def read_misshapen(world: World, strategy: Strategy, theirs: Path) -> str:
    placed = place(strategy, world)
    with pytest.raises(CheckpointError) as caught:
        placed.load_state_dict(open_latest(theirs, world))
    return str(caught.value)


@pytest.mark.parametrize("strategy", [pytest.param(Single(), id="single"), PAIRS[1], PAIRS[3]])
def test_a_checkpoint_of_another_model_is_refused_with_every_name(strategy: Strategy, tmp_path: Path) -> None:
    other = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    part = builder(build=lambda: other, optimizer=no_optimizer, loss=loss)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    save(Single().place(part, SOLO), theirs, SOLO)
    if isinstance(strategy, Single):
        found = [read_misshapen(SOLO, strategy, theirs)]
    else:
        found = on_ranks(2, read_misshapen, strategy, theirs, scratch=tmp_path / "ranks")
    for words in found:
        assert words.splitlines() == [
            "the checkpoint belongs to another model:",
            "  missing in the checkpoint: model.3.bias",
            "  missing in the checkpoint: model.3.weight",
            "  unexpected in the checkpoint: model.2.bias",
            "  unexpected in the checkpoint: model.2.weight",
        ]
