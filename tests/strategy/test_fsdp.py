"""What the sharding options promise: who holds how much, shared parameters, the same start, and words for bad input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from runner.errors import ModelError, SpecError
from runner.precision.bf16 import BF16
from runner.protocols import Clip
from runner.strategy.fsdp.fsdp import FSDP
from runner.strategy.fsdp.settings import Build, Gather, Sharding, ShardSettings
from runner.strategy.fsdp.units import units_of
from runner.strategy.fsdp.wrap import Wrap
from runner.strategy.single import Single
from runner.world.solo import SoloWorld
from tests.conftest import Ended
from tests.project.user_hooks.tower import Block, Tower, build_model
from tests.strategy.ranks import model_of, named, on_ranks
from tests.strategy.small_tower import micro_batches_of, prepare, seeded_model, sum_loss

F32 = 4


def fsdp(*, shard_size: int | None = None, **settings: Any) -> FSDP:
    """The strategy with these settings."""
    return FSDP(shard_size=shard_size, settings=ShardSettings(**settings))


def step(trainable: Any, world: Any, num_micro_batches: int = 1) -> Any:
    trainable.forward_backward(micro_batches_of(world, num_micro_batches))
    return trainable.update(measure=True).grad_norm.item()


def bytes_of(tensors: Any) -> Any:
    """What this rank holds."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def share_of(model: Any, rank: Any, ranks: Any) -> Any:
    """Numbers of this rank's rows of every parameter, as torch.chunk cuts: ceil(rows / ranks) each, the last fewer."""
    total = 0
    for parameter in model.parameters():
        rows = -(-len(parameter) // ranks)
        total += max(min(rows, len(parameter) - rank * rows), 0) * parameter[0].numel()
    return total


# ── Memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def held(world: Any, part: Any) -> Any:
    """Bytes of parameters, gradients and optimizer state on this rank; then of whole parameters amid a step."""
    amid = []

    def watching_loss(model: Any, batch: Any) -> Any:
        loss = sum_loss(model, batch)
        amid.append(sum(p.numel() * F32 for p in model.parameters() if not isinstance(p, DTensor)))
        return loss

    trainable = prepare(world, part, loss=watching_loss)
    trainable.forward_backward(micro_batches_of(world, 1))
    gradients = bytes_of(p.grad for p in model_of(trainable).parameters())
    trainable.update(measure=False)
    state = named(trainable)
    model = bytes_of(t for name, t in state.items() if name.startswith("model.") and name != "model.seen")
    optimizer = bytes_of(t for name, t in state.items() if name.startswith("optimizer.") and t.ndim)
    return model, gradients, optimizer, amid[0]


@pytest.mark.parametrize("sharding", [Sharding.FULL_SHARD, Sharding.SHARD_GRAD_OP])
def test_each_rank_holds_its_share_of_parameters_gradients_and_state(sharding: Any, tmp_path: Path) -> None:
    model = seeded_model()
    whole = sum(p.numel() for p in model.parameters())
    in_blocks = sum(p.numel() for block in model.blocks for p in block.parameters())
    gathered = whole - in_blocks if sharding is Sharding.FULL_SHARD else whole
    for rank, found in enumerate(on_ranks(2, held, fsdp(sharding=sharding), scratch=tmp_path)):
        partition = F32 * share_of(model, rank, 2)
        assert found == (partition, partition, 2 * partition, F32 * gathered)
    assert share_of(model, 0, 2) + share_of(model, 1, 2) == whole


def test_groups_hold_replicas_of_shards(tmp_path: Path) -> None:
    model = seeded_model()
    found = on_ranks(4, held, FSDP(shard_size=2), scratch=tmp_path)
    partitions = [F32 * share_of(model, rank % 2, 2) for rank in range(4)]
    assert [one[:3] for one in found] == [(partition, partition, 2 * partition) for partition in partitions]


def whole_gradients(world: Any, part: Any) -> Any:
    """Bytes of gradients that this rank holds when the last of three micro-batches begins: shards, and whole ones."""
    seen: list[tuple[int, int]] = []

    def watching_loss(model: Any, batch: Any) -> Any:
        units = [module for module in model.modules() if hasattr(module, "_get_fsdp_state")]
        units.append(trainable._placed._units[0])  # the root
        parameters = [p for u in units for g in u._get_fsdp_state()._fsdp_param_groups for p in g.fsdp_params]
        unique = {id(p): p for p in parameters}.values()
        whole = [p._unsharded_param.grad for p in unique if hasattr(p, "_unsharded_param")]
        shards = [p.sharded_param.grad for p in unique]
        seen.append((bytes_of(g for g in shards if g is not None), bytes_of(g for g in whole if g is not None)))
        return sum_loss(model, batch)

    trainable = prepare(world, part, loss=watching_loss)
    trainable.forward_backward(micro_batches_of(world, 2))
    return seen[-1]


@pytest.mark.parametrize("sharding", [Sharding.FULL_SHARD, Sharding.SHARD_GRAD_OP])
@pytest.mark.parametrize("sync_each_round", [False, True])
def test_accumulation_holds_whole_gradients_unless_each_round_exchanges_them(
    sharding: Any, sync_each_round: bool, tmp_path: Path
) -> None:
    """The trade of Accelerate's Mixtral table: one whole gradient a rank, or an exchange every round."""
    model = seeded_model()
    part = fsdp(sharding=sharding, sync_each_round=sync_each_round)
    for rank, found in enumerate(on_ranks(2, whole_gradients, part, scratch=tmp_path)):
        whole = F32 * sum(p.numel() for p in model.parameters())
        assert found == ((F32 * share_of(model, rank, 2), 0) if sync_each_round else (0, whole))


# ── The same step ───────────────────────────────────────────────────────────────────────────────────────────────────


def trained(
    world: Any, part: Any, num_micro_batches: Any, precision: Any = None, clip: Any = None, build: Any = seeded_model
) -> Any:
    """Weights before and after three steps, whole, and the norms."""
    trainable = prepare(world, part, precision=precision, clip=clip, build=build)

    def whole() -> dict[str, Any]:
        return {name: p.full_tensor() if isinstance(p, DTensor) else p.clone() for name, p in weights_of(trainable)}

    before = {name: tensor.detach() for name, tensor in whole().items()}
    norms = [step(trainable, world, num_micro_batches) for _ in range(3)]
    losses = [float(loss.value) for loss in trainable.evaluate(micro_batches_of(world, 1).micro_batches)]
    return before, {name: tensor.detach() for name, tensor in whole().items()}, norms, losses


def weights_of(trainable: Any) -> Any:
    trainable.state_dict()
    return model_of(trainable).named_parameters()


PARTS = [
    fsdp(build=Build.RANK_0),
    fsdp(wrap=Wrap.NONE, sync_each_round=True),
    fsdp(wrap=Wrap.SIZE, wrap_min_params=100, forward_prefetch=2, backward_prefetch=2),
    fsdp(wrap=Wrap.CLASSES, wrap_classes=["Linear", "LayerNorm"], backward_prefetch=0, unused_parameters=True),
    fsdp(sharding=Sharding.SHARD_GRAD_OP, offload=True, build=Build.RANK_0),
]


@pytest.mark.parametrize("part", PARTS, ids=range(len(PARTS)))
def test_every_setting_takes_the_steps_of_one_process(part: Any, tmp_path: Path) -> None:
    clip = Clip(norm=0.5)
    alone = trained(SoloWorld(torch.device("cpu")), Single(), 4, clip=clip)
    for before, after, norms, _ in on_ranks(2, trained, part, 2, None, clip, scratch=tmp_path):
        for name in alone[0]:
            assert torch.equal(before[name], alone[0][name]), f"{name} does not start where one process does"
            # fp32 sums in another order, after three steps of AdamW.
            torch.testing.assert_close(after[name], alone[1][name], rtol=0, atol=2e-6)
        assert norms == pytest.approx(alone[2], rel=1e-6)


@pytest.mark.parametrize("part", [FSDP(shard_size=2), fsdp(shard_size=2, sync_each_round=True, build=Build.RANK_0)])
def test_four_ranks_in_two_groups_take_the_steps_of_one_process(part: Any, tmp_path: Path) -> None:
    alone = trained(SoloWorld(torch.device("cpu")), Single(), 4)
    for before, after, norms, _ in on_ranks(4, trained, part, 2, scratch=tmp_path):
        for name in alone[0]:
            assert torch.equal(before[name], alone[0][name])
            torch.testing.assert_close(after[name], alone[1][name], rtol=0, atol=2e-6)
        assert norms == pytest.approx(alone[2], rel=1e-6)


def test_gathering_in_the_precisions_type_stays_near_what_autocast_does(tmp_path: Path) -> None:
    """Norms and embeddings see weights of eight bits: half a unit of 2^-8 each; losses of order 1 stay within 2^-6."""
    stored, rounded = (
        on_ranks(2, trained, fsdp(gather=gather), 1, BF16(), scratch=tmp_path / gather.value)
        for gather in (Gather.STORED, Gather.PRECISION)
    )
    assert rounded[0][3] == pytest.approx(stored[0][3], rel=2**-6)
    assert all(tensor.dtype == torch.float32 for tensor in rounded[0][1].values())


def test_one_process_holds_the_plain_model() -> None:
    trainable = prepare(SoloWorld(torch.device("cpu")), fsdp(offload=True))
    assert type(model_of(trainable)) is Tower
    assert type(model_of(trainable).blocks[0]) is Block


def tied(world: Any, part: Any) -> Any:
    trainable = prepare(world, part, build=seeded_two_towers)
    step(trainable, world)
    trainable.state_dict()
    names = [name for name, _ in model_of(trainable).named_parameters(remove_duplicate=False)]
    first, second = (model_of(trainable).get_parameter(name) for name in ("0.1.weight", "1.0.weight"))
    return first is second, "0.1.weight" in names, sorted(named(trainable))


def seeded_two_towers() -> Any:
    """Two units of which each holds one end of a tied weight."""
    torch.manual_seed(0)
    first, second = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    second[0].weight = first[1].weight
    return nn.Sequential(first, second)


@pytest.mark.parametrize("build", list(Build))
def test_units_that_share_a_parameter_become_one(build: Any, tmp_path: Path) -> None:
    part = fsdp(wrap=Wrap.CLASSES, wrap_classes=["Linear"], build=build)
    for partitions, is_named, names in on_ranks(2, tied, part, scratch=tmp_path):
        assert partitions
        assert is_named
        assert "model.0.1.weight" in names
        assert "model.1.0.weight" not in names


# ── Units ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_class_that_is_not_there_is_named_on_one_process_too(runner: Callable[..., Ended]) -> None:
    ended = runner("train", "points", "strategy=fsdp", "blocks.classes=[Blok]", code=2)
    assert "strategy.wrap_classes: ['Blok'] are not classes of modules of this model. It has: " in ended.stderr
    assert "Linear (2)" in ended.stderr


def names_of_units(model: Any, **choices: Any) -> Any:
    known = {"wrap": Wrap.AUTO, "classes": [], "min_params": 1} | choices
    units = units_of(model, key="strategy", **known)
    names = {module: name for name, module in model.named_modules()}
    return [[names[module] for module in group] for group in units.groups]


def test_auto_goes_by_classes_then_by_the_models_own_word_then_takes_the_whole() -> None:
    assert names_of_units(build_model(blocks=2)) == [["blocks.1"], ["blocks.0"]]
    assert names_of_units(build_model(blocks=1), classes=["LayerNorm"]) == [["blocks.0.norm"]]
    assert names_of_units(build_model(names_blocks=False)) == []


def test_size_makes_no_unit_of_containers_and_keeps_attention_whole() -> None:
    model = nn.Sequential(nn.ModuleList([nn.Linear(4, 4)]), nn.MultiheadAttention(4, 2), nn.Linear(2, 2))
    assert names_of_units(model, wrap=Wrap.SIZE, min_params=7) == [["1"], ["0.0"]]


class Outer(nn.Module):
    """Uses the weight of the unit inside it by itself, too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.weight = self.inner.weight


def test_a_shared_parameter_belongs_to_the_outer_of_two_units_or_to_neither() -> None:
    model = build_model()
    units = units_of(model, wrap=Wrap.CLASSES, classes=["Linear"], min_params=1, key="strategy")
    assert [model.bottom, model.top] in units.groups  # neither lies in the other: together
    assert units.owner_of_shared == {}
    model = nn.Sequential(Outer())
    units = units_of(model, wrap=Wrap.CLASSES, classes=["Linear", "Outer"], min_params=1, key="strategy")
    assert units.groups == [[model[0].inner], [model[0]]]
    assert units.owner_of_shared == {model[0].weight: model[0]}
    units = units_of(model, wrap=Wrap.CLASSES, classes=["Linear"], min_params=1, key="strategy")
    assert units.owner_of_shared == {model[0].weight: None}


# ── Bad input ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_class_that_the_model_lacks_is_named_with_those_it_has() -> None:
    with pytest.raises(SpecError) as refused:
        names_of_units(build_model(), wrap=Wrap.CLASSES, classes=["Blok", "Linear"])
    assert str(refused.value).startswith("strategy.wrap_classes: ['Blok'] are not classes of modules of this model.")
    assert "It has: Linear (8), Block (3), LayerNorm (3), Tower, ModuleList." in str(refused.value)


def test_no_split_needs_a_model_that_names_its_blocks() -> None:
    with pytest.raises(SpecError, match=r"strategy\.wrap: no_split, but the model names no classes of its own"):
        names_of_units(build_model(names_blocks=False), wrap=Wrap.NO_SPLIT)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sharding": Sharding.NO_SHARD}, "sharding=no_shard shards nothing. Use strategy=ddp"),
        ({"shard_size": 0}, "shard_size=0 must be at least 1"),
        ({"wrap": Wrap.CLASSES}, r"wrap_classes=\[\] is empty"),
        ({"wrap_min_params": 0}, "wrap_min_params=0 must be at least 1"),
        ({"forward_prefetch": -1}, "forward_prefetch=-1 must not be negative"),
        ({"backward_prefetch": -1}, "backward_prefetch=-1 must not be negative"),
    ],
)
def test_values_that_mean_nothing_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fsdp(**fields)


def test_axes_say_which_shard_sizes_divide() -> None:
    assert FSDP().axes(4).sizes == (4,)
    assert FSDP(shard_size=4).axes(4).names == ("shard",)
    assert FSDP(shard_size=2).axes(4).sizes == (2, 2)
    assert FSDP(shard_size=2).axes(4).data_ranks == 4
    with pytest.raises(ValueError, match=r"strategy.shard_size=3 does not divide the 4 ranks. Use 2 or 4, or another"):
        FSDP(shard_size=3).axes(4)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("strategy.sharding=no_shard", "strategy.sharding: sharding=no_shard shards nothing"),
        (
            "strategy.shard_size=1",
            "strategy.shard_size: 1 shards nothing. Use strategy=ddp",
        ),
        ("strategy.shard_size=3", "hardware.processes: strategy.shard_size=3 does not divide the 2 ranks"),
        ("strategy.wrap=block", "strategy.wrap: 'block' must be auto | classes | no_split | size | none"),
    ],
)
def test_the_command_says_so_before_launch(runner: Callable[..., Ended], argument: str, message: str) -> None:
    ended = runner("check", "points", "strategy=fsdp", "hardware.processes=2", argument, code=2)
    assert message in ended.stderr


class Scalar(nn.Module):
    def __init__(self, shape: Any, dtype: Any) -> None:
        super().__init__()
        self.line = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(shape, dtype=dtype))


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 2)
        self.mask = torch.ones(2)


def refusal(world: Any, part: Any, build: Any) -> Any:
    try:
        prepare(world, part, build=build)
    except ModelError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("part", "build", "message"),
    [
        (
            FSDP(),
            lambda: Scalar((), torch.float32),
            "parameters without a dimension, which cannot be sharded: ['scale']",
        ),
        (FSDP(), lambda: Scalar((1,), torch.float64), "have several dtypes: ['torch.float32', 'torch.float64']"),
        (fsdp(build=Build.RANK_0), Keeps, "but mask is a tensor that is neither. Register it as a buffer, or use"),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused(part: Any, build: Any, message: str, tmp_path: Path) -> None:
    answers = on_ranks(2, refusal_alone, part, build, scratch=tmp_path)
    assert message in answers[1]


def refusal_alone(world: Any, part: Any, build: Any) -> Any:
    """Rank 0 may have nothing to complain about and would wait for the others."""
    return refusal(world, part, build) if world.rank or part.settings.build is Build.EVERY_RANK else ""
