"""What the expert axis promises: one process's losses, a share of the memory, any checkpoint, words for bad input."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from runner.checkpoint.sharded import Sharded
from runner.model.experts import Experts
from runner.model.recompute import recompute
from runner.precision.bf16 import BF16
from runner.protocols import Progress
from runner.strategy.ddp import DDP
from runner.strategy.fsdp.fsdp import FSDP
from runner.strategy.fsdp.settings import Build, ShardSettings
from runner.strategy.parallel import Parallel
from runner.strategy.parallel.expert_modules import expert_faults
from runner.strategy.single import Single
from runner.world.solo import SoloWorld
from tests.storage.states import open_latest
from tests.strategy.parallel.small_mixture import (
    EXPERTS,
    Mixtures,
    batches_of,
    prepare,
    seeded_mixtures,
    steps_of,
    trained,
    weights,
)
from tests.strategy.ranks import model_of, named, on_ranks

F32 = 4
ALONE = SoloWorld(torch.device("cpu"))


def on(num_ranks: int, function: Any, part: Any, *args: Any, scratch: Path) -> Any:
    """What each rank returns."""
    return on_ranks(num_ranks, function, part, *args, axes=part.axes(num_ranks), scratch=scratch)


def assert_same(found: Any, alone: Any) -> None:
    """Losses and weights of one process, up to the order of fp32 sums; AdamW's steps are of 0.01."""
    assert_close(found[0], alone[0], rtol=0, atol=1e-6)
    assert_close(found[1], alone[1], rtol=1e-5, atol=0)
    assert_close(found[2:-1], alone[2:-1], rtol=0, atol=2e-5)  # of an evaluation, if there was one
    assert_close(found[-1], {name: alone[-1][name] for name in found[-1]}, rtol=0, atol=2e-5)  # those of its stage


# ── The same step ───────────────────────────────────────────────────────────────────────────────────────────────────

LAYOUTS = {
    "expert=2": (2, Parallel(expert=2)),
    "expert=2 shard=2": (4, Parallel(expert=2)),
    "expert=2 replicate=2": (4, Parallel(expert=2, replicate=2)),
    "expert=2 tensor=2": (4, Parallel(expert=2, tensor=2, tensor_plan={"head": "colwise_gather_output"})),
    "expert=2 pipeline=2": (4, Parallel(expert=2, pipeline=2)),
    "expert=2 context=2": (4, Parallel(expert=2, context=2)),
    "fsdp": (2, FSDP()),
    "ddp": (2, DDP()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_are_those_of_one_process(layout: Any, tmp_path: Path) -> None:
    """With both auxiliary losses and sequences of unequal length."""
    num_ranks, part = LAYOUTS[layout]
    alone = trained(ALONE, Single()), trained(ALONE, Single(), 3, 0.05)
    for found in on(num_ranks, plainly_and_clipped, part, scratch=tmp_path):
        for one, expected in zip(found, alone, strict=True):
            assert_same(one, expected)


def plainly_and_clipped(world: Any, part: Any) -> Any:
    return trained(world, part), trained(world, part, 3, 0.05)


def lopsided() -> Any:
    """Every token goes to experts 0 and 1, which one rank has; the other has nothing to compute."""
    model = seeded_mixtures()
    with torch.no_grad():
        for block in model.blocks:
            block.norm.weight.zero_()
            block.norm.bias.fill_(1.0)
            block.mixture.router.weight[:2].add_(2.0)
    return model


def selectively(model: Any) -> None:
    recompute(model.blocks, selective=True)


def fully(model: Any) -> None:
    recompute(model.blocks, selective=False)


def compiled(model: Any) -> None:
    for block in model.blocks:
        block.compile(backend="eager")


def in_several_ways(world: Any, part: Any) -> Any:
    return (
        trained(world, part, 2, steps=2, apply=compiled),
        trained(world, part, build=lopsided),
        trained(world, part, 2, steps=2, apply=fully),
        trained(world, part, 2, steps=2, apply=selectively),
        trained(world, part, steps=2, precision=BF16()),
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch._dynamo's
def test_experts_without_tokens_compiled_recomputed_and_in_bf16(tmp_path: Path) -> None:
    *exact, narrow = in_several_ways(ALONE, Single())
    for found in on(2, in_several_ways, Parallel(expert=2), scratch=tmp_path):
        for one, alone in zip(found, exact, strict=False):
            assert_same(one, alone)
        assert_close(found[-1][0], narrow[0], rtol=2**-8, atol=0)  # the products are rounded to eight bits


# ── Who holds what ──────────────────────────────────────────────────────────────────────────────────────────────────


def bytes_of(tensors: Any) -> int:
    """What this rank holds."""
    return sum((one.to_local() if isinstance(one, DTensor) else one).nbytes for one in tensors)


def held(world: Any, part: Any) -> Any:
    """Bytes of parameters, gradients and optimizer state: of experts, then of everything else."""
    trainable = prepare(world, part)
    trainable.forward_backward(batches_of(world, 1))
    gradients = {name: parameter.grad for name, parameter in model_of(trainable).named_parameters()}
    trainable.update(measure=False)
    state = {name: tensor for name, tensor in named(trainable).items() if tensor.ndim}
    model, optimizer = (
        {name: tensor for name, tensor in state.items() if name.startswith(kind)} for kind in ("model.", "optimizer.")
    )
    return [
        [bytes_of(tensor for name, tensor in kind.items() if (".experts." in name) is of_experts)]
        for of_experts in (True, False)
        for kind in (model, gradients, optimizer)
    ]


@pytest.mark.parametrize(("num_ranks", "shards"), [(2, 1), (4, 2)])
def test_each_rank_holds_its_experts_and_its_share_of_the_rest(num_ranks: int, shards: int, tmp_path: Path) -> None:
    model = seeded_mixtures()
    experts = [parameter for name, parameter in model.named_parameters() if ".experts." in name]
    of_experts = F32 * sum(parameter.numel() for parameter in experts) // (2 * shards)
    rest = [parameter for name, parameter in model.named_parameters() if ".experts." not in name]
    for rank, found in enumerate(on(num_ranks, held, Parallel(expert=2), scratch=tmp_path)):
        of_rest = F32 * sum(share(parameter, rank, num_ranks) for parameter in rest)
        assert found == [[of_experts], [of_experts], [2 * of_experts], [of_rest], [of_rest], [2 * of_rest]]


def share(parameter: Any, rank: int, ranks: int) -> int:
    """Numbers of this rank's rows: ceil(rows / ranks) each, the last fewer."""
    rows = -(-len(parameter) // ranks)
    return max(min(rows, len(parameter) - rank * rows), 0) * parameter[0].numel()


# ── Checkpoints ─────────────────────────────────────────────────────────────────────────────────────────────────────


def saved(world: Any, part: Any, to: Path) -> Any:
    """Three steps, then a checkpoint; what two more steps give."""
    trainable = prepare(world, part)
    steps_of(world, trainable, 1, 3)
    Sharded().open(to, world).save(trainable.state_dict(), progress=Progress(step=3, position=36), metrics={})
    return *steps_of(world, trainable, 1, 2), weights(trainable)


def resumed(world: Any, part: Any, checkpoint: Path) -> Any:
    """What two more steps give."""
    trainable = prepare(world, part)
    trainable.load_state_dict(open_latest(checkpoint, world))
    return *steps_of(world, trainable, 1, 2), weights(trainable)


def saved_and_resumed(world: Any, part: Any, others: Path, own: Path) -> Any:
    """Two steps from the checkpoint of others; from its own, beside the same without an interruption."""
    return resumed(world, part, others), saved(world, part, own), resumed(world, part, own)


def test_checkpoints_resume_under_any_strategy_and_bitwise_under_the_same(tmp_path: Path) -> None:
    own = tmp_path / "single"
    alone = saved(ALONE, Single(), own)
    for layout in ("expert=2 shard=2", "fsdp"):
        num_ranks, part = LAYOUTS[layout]
        before, own, scratch = own, tmp_path / layout, tmp_path / f"{layout} ranks"
        for others, uninterrupted, again in on(num_ranks, saved_and_resumed, part, before, own, scratch=scratch):
            assert_same(others, alone)
            assert_same(uninterrupted, alone)
            assert_close(again, uninterrupted, rtol=0, atol=0)
        assert_same(resumed(ALONE, Single(), own), alone)


# ── Words for bad input ─────────────────────────────────────────────────────────────────────────────────────────────


class OwnExperts(nn.Module):
    """Experts of another library, with something that is wrong."""

    def __init__(self, *, num_experts: Any = 4, shape: Any = (4, 3, 3)) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Any, chosen: Any, weights: Any) -> Any:
        return x


class OwnWithOneArgument(OwnExperts):
    """Routes inside."""

    def forward(self, x: Any) -> Any:  # type: ignore[override]
        return x


class Twice(nn.Module):
    """Two modules of experts with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (Experts(width=4, hidden=4, num_experts=4) for _ in range(2))
        self.other.gate_up = self.one.gate_up


WANTED = (
    "Ranks divide modules whose parameters are all stacked by expert and whose forward takes tokens, the experts of "
    "each and their weights."
)
FAULTS = [
    (
        nn.Linear(2, 2),
        [],
        "strategy.expert",
        "strategy.expert=2 divides experts, but the model has none of runner.model.experts. Use strategy.expert=1.",
    ),
    (
        nn.Sequential(OwnExperts()),
        [],
        "strategy.expert",
        "strategy.expert=2 divides experts, but the model has none of runner.model.experts. Name its modules with "
        "stacked weights: *.",
    ),
    (
        Mixtures(),
        ["blocks.*.mixture.expert"],
        "strategy.expert_modules",
        "blocks.*.mixture.expert: the model has no such module. Did you mean blocks.*.mixture.experts? Modules with "
        "stacked weights: blocks.*.mixture.experts.",
    ),
    (Mixtures(), ["head"], "strategy.expert", f"head: a Linear has no num_experts. {WANTED}"),
    (
        nn.Sequential(OwnExperts(num_experts=3)),
        ["0"],
        "strategy.expert",
        f"0: weight [4, 3, 3] is not stacked: it does not begin with 3. {WANTED}",
    ),
    (
        nn.Sequential(OwnWithOneArgument()),
        ["0"],
        "strategy.expert",
        "0: OwnWithOneArgument.forward cannot be called with tokens, experts and weights (too many positional "
        f"arguments). {WANTED}",
    ),
    (
        nn.Sequential(OwnExperts()),
        ["0"],
        "strategy.expert",
        "0: a rank's part [2, 3, 3] of weight has no dimension that strategy.shard=5 divides.",
    ),
    (
        nn.Sequential(OwnExperts(num_experts=9, shape=(9, 3, 3))),
        ["*"],
        "strategy.expert",
        "0: its 9 experts are not divisible by strategy.expert=2. They are by 3, 9.",
    ),
    (
        Twice(),
        [],
        "strategy.expert",
        "one: its weights are also those of another module of experts. Use strategy.expert=1.",
    ),
]


@pytest.mark.parametrize(("model", "patterns", "key", "message"), FAULTS, ids=range(len(FAULTS)))
def test_a_model_whose_experts_cannot_be_divided(model: Any, patterns: Any, key: Any, message: Any) -> None:
    shards = 5 if "strategy.shard=5" in message else 1
    first, *others = expert_faults(model, patterns, ranks=2, shards=shards)
    assert (first.key, others) == (key, [])
    assert message in first.message


RANK_0 = ShardSettings(build=Build.RANK_0)


@pytest.mark.parametrize(
    ("part", "ranks", "message"),
    [
        (
            Parallel(expert=2, shards=RANK_0),
            2,
            "strategy.build: rank_0 sends whole weights, but strategy.expert divides experts. Use every_rank.",
        ),
        (
            Parallel(expert=2, tensor=2, sequence_parallel=True),
            4,
            "strategy.sequence_parallel: splits the tokens that strategy.expert sends to experts. Use false, or "
            "strategy.expert=1.",
        ),
        (
            Parallel(expert_modules=["*.experts"]),
            2,
            "strategy.expert_modules: names modules to divide by experts, but strategy.expert=1. Set strategy.expert, "
            "or [].",
        ),
    ],
)
def test_settings_that_contradict_each_other(part: Any, ranks: int, message: str) -> None:
    spec: Any = SimpleNamespace(world_size=ranks)
    assert [f"{fault.key}: {fault.message}" for fault in part.check(spec)] == [message]


def test_sizes_that_do_not_multiply_to_the_ranks_are_told_with_that_of_expert_which_does() -> None:
    with pytest.raises(ValueError, match=r"^the sizes shard=2 × expert=3 = 6 are not the 4 ranks\. .*expert=2, or 6"):
        Parallel(expert=3, shard=2).axes(4)


def test_experts_that_divide_have_no_fault() -> None:
    assert list(expert_faults(Mixtures(), [], ranks=2, shards=2)) == []
    assert EXPERTS == (8, 6)
