"""Replicas that take steps of their own on real ranks, beside loops by hand that train all replicas in one process."""

import copy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # the first optimizer step imports it: once, before forking
from torch import nn
from torch.distributed.tensor import DTensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from runner import Loss
from runner.protocols import Axes, Axis, Clip, MicroBatch, StepBatches
from runner.strategy.ddp import DDP
from runner.strategy.fsdp import FSDP
from runner.strategy.local_sgd.diloco import DiLoCo
from runner.strategy.local_sgd.exchanges import Exchanges
from runner.strategy.local_sgd.local_sgd import LocalSGD
from tests.conftest import Ended
from tests.parity.options import tensors
from tests.strategy.ranks import builder, model_of, on_ranks

WIDTH = 64
torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
NORMED = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
NUMBERS = sum(parameter.numel() for parameter in MODEL.parameters())  # 2 × (64 × 64 + 64)
STEPS, ITEMS, CLIP = 7, 16, 0.5
X, Y = torch.randn(STEPS, ITEMS, WIDTH), torch.randn(STEPS, ITEMS, WIDTH)
COUNTS = torch.randint(1, 6, (STEPS, ITEMS))


def mean_loss(model: Any, batch: Any) -> Any:
    x, y, _ = batch
    return nn.functional.mse_loss(model(x), y)


def token_loss(model: Any, batch: Any) -> Any:
    x, y, counts = batch
    return Loss(((model(x) - y).square().mean(1) * counts).sum(), counts.sum())


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """With a large eps: Adam would divide a gradient that is nearly zero by itself, rounding and all."""
    return torch.optim.AdamW(parameters, lr=0.01, eps=1e-3)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def share(step: int, part: int, parts: int) -> Any:
    """A replica's items of a step."""
    own = slice(part * ITEMS // parts, (part + 1) * ITEMS // parts)
    return X[step][own], Y[step][own], COUNTS[step][own]


# ── By hand ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def gradients(model: Any, loss: Any, batch: Any, count: Any) -> None:
    """Those of a replica's items, divided by this count; None = by its own."""
    result = loss(model, batch)
    total, own = (result.total, result.count) if isinstance(result, Loss) else (result * len(batch[0]), len(batch[0]))
    (total / (own if count is None else count)).backward()


def average(number: int, same: Sequence[torch.Tensor]) -> None:
    mean = torch.stack([parameter.detach() for parameter in same]).mean(0)
    for parameter in same:
        parameter.copy_(mean)


class OuterByHand:
    """With Nesterov's momentum: v ← μv + Δ, θ ← θ − lr (Δ + μv)."""

    def __init__(self, settings: tuple[float, float, bool], start: Any = MODEL) -> None:
        self.lr, self.momentum, self.nesterov = settings
        self.common = [parameter.detach().clone() for parameter in start.parameters()]
        self.velocity = [torch.zeros_like(parameter) for parameter in self.common]

    def __call__(self, number: int, same: Sequence[torch.Tensor]) -> None:
        common = self.common[number]
        moved = torch.stack([common - parameter.detach() for parameter in same]).mean(0)
        self.velocity[number] = self.momentum * self.velocity[number] + moved
        ahead = moved + self.momentum * self.velocity[number] if self.nesterov else self.velocity[number]
        self.common[number] = common - self.lr * ahead
        for parameter in same:
            parameter.copy_(self.common[number])


def by_hand(
    loss: Any, optimizer: Any, *, turns: dict[int, slice], outer: Any = None, warmup: int = 0, replicas: int = 2
) -> list[Any]:
    """The weights of each replica after all steps: `turns` says which parameters are exchanged after which step."""
    exchange = average if outer is None else OuterByHand(outer)
    models = [copy.deepcopy(MODEL) for _ in range(replicas)]
    optimizers = [optimizer(model.parameters()) for model in models]
    for step in range(STEPS):
        counts = COUNTS[step].sum() if loss is token_loss else ITEMS
        for part, model in enumerate(models):
            gradients(model, loss, share(step, part, replicas), counts if step < warmup else None)
        if step < warmup:
            for same in zip(*(model.parameters() for model in models), strict=True):
                total = torch.stack([parameter.grad for parameter in same]).sum(0)
                for parameter in same:
                    parameter.grad = total.clone()
        for model, one in zip(models, optimizers, strict=True):
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            one.step()
            one.zero_grad()
        if step + 1 == warmup and outer is not None:
            exchange = OuterByHand(outer, models[0])
        if step + 1 in turns:
            columns = list(zip(*(model.parameters() for model in models), strict=True))
            with torch.no_grad():
                for number in range(len(columns))[turns[step + 1]]:
                    exchange(number, columns[number])
    return [[parameter.detach() for parameter in model.parameters()] for model in models]


# ── On ranks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Sent(TorchDispatchMode):
    """Adds up the bytes of tensors handed to all-reduce and broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d" and func._opname in ("allreduce_", "broadcast_"):
            self.bytes += sum(tensor.nbytes for tensor in args[0])
        return func(*args, **(kwargs or {}))


def train(
    world: Any, strategy: Any, loss: Any, optimizer: Any, rounds: int, clip: Any = CLIP, model: Any = MODEL
) -> Any:
    """The weights of this rank's replica after all steps, the bytes sent in each, the last norm, and the buffers."""
    trainable = strategy.prepare(
        builder(
            build=lambda: copy.deepcopy(model),
            optimizer=lambda named: optimizer([parameter for _, parameter in named]),
            loss=loss,
            clip=Clip(norm=clip),
        ),
        world,
    )
    sent, norms = [], []
    for step in range(STEPS):
        batch = share(step, world.rank, world.size)
        parts = zip(*(tensor.chunk(rounds) for tensor in batch), strict=True)
        batches = StepBatches([MicroBatch(part, len(part[0])) for part in parts], ITEMS)
        with Sent() as counted:
            trainable.forward_backward(batches)
            update = trainable.update(measure=step == STEPS - 1)
        sent.append(counted.bytes)
        norms.append(update.grad_norm)
    weights = [parameter.detach() for parameter in model_of(trainable).parameters()]
    whole = [one.full_tensor() if isinstance(one, DTensor) else one for one in weights]
    return whole, sent, norms[-1], list(model_of(trainable).buffers())


def train_each(world: Any, *several: Any) -> Any:
    return [train(world, *arguments) for arguments in several]


def local(**keys: Any) -> LocalSGD:
    return LocalSGD(exchanges=Exchanges(**keys))


WHOLE, FIRST, SECOND = slice(None), slice(2), slice(2, None)  # of the parameters; each layer is half of all elements
CASES: dict[str, Any] = {
    "local": ((local(every_steps=3), token_loss, adamw, 2), {"turns": {3: WHOLE, 6: WHOLE}}),
    "warm-up": (
        (local(every_steps=2, warmup_steps=3), token_loss, adamw, 2),
        {"turns": {5: WHOLE, 7: WHOLE}, "warmup": 3},
    ),
    "fragments": (
        (local(every_steps=4, fragments=2), mean_loss, adamw, 1),
        {"turns": {2: FIRST, 4: SECOND, 6: FIRST}},
    ),
    "diloco": (
        (DiLoCo(exchanges=Exchanges(every_steps=2)), token_loss, adamw, 1),
        {"outer": (0.7, 0.9, True), "turns": {2: WHOLE, 4: WHOLE, 6: WHOLE}},
    ),
    "plain momentum": (
        (
            DiLoCo(exchanges=Exchanges(every_steps=2, fragments=2), outer_lr=0.5, outer_nesterov=False),
            mean_loss,
            sgd,
            2,
        ),
        {
            "outer": (0.5, 0.9, False),
            "turns": {1: FIRST, 2: SECOND, 3: FIRST, 4: SECOND, 5: FIRST, 6: SECOND, 7: FIRST},
        },
    ),
}
ALSO = {
    "each step": (local(every_steps=1), mean_loss, sgd, 1, None),
    "ddp": (DDP(), mean_loss, sgd, 1, None),
    "normed": (local(every_steps=7), mean_loss, adamw, 1, CLIP, NORMED),
    "normed apart": (local(every_steps=8), mean_loss, adamw, 1, CLIP, NORMED),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each case, on both ranks by name."""
    several = [*(arguments for arguments, _ in CASES.values()), *ALSO.values()]
    axes = LocalSGD().axes(2)
    ranks = on_ranks(2, train_each, *several, scratch=tmp_path_factory.mktemp("trained"), axes=axes)
    return [dict(zip([*CASES, *ALSO], results, strict=True)) for results in ranks]


@pytest.mark.parametrize("case", CASES)
def test_replicas_end_where_a_loop_by_hand_ends(case: str, trained: Any) -> None:
    (_, loss, optimizer, _), keys = CASES[case]
    expected = by_hand(loss, optimizer, **keys)
    for rank, weights in enumerate(expected):
        assert_close(trained[rank][case][0], weights, rtol=0, atol=1e-6)  # fp32 sums in another order
    assert (case == "warm-up") == all(map(torch.equal, trained[0][case][0], trained[1][case][0]))


def test_averaging_after_each_step_of_plain_sgd_is_ddp(trained: Any) -> None:
    assert_close(trained[0]["each step"][0], trained[0]["ddp"][0], rtol=0, atol=1e-6)  # fp32 sums in another order
    norms = [results["each step"][2] for results in trained]
    assert norms[0] == norms[1]


def test_bytes_are_sent_at_exchanges_only(trained: Any) -> None:
    """As docs/local_sgd.md has them. Each step of the warm-up sums its count of 4 bytes, the last step its norm."""
    whole, half = 4 * NUMBERS, 2 * NUMBERS
    norms = 4 * (WIDTH * WIDTH + 3 * WIDTH) + 4 * 2 * WIDTH + 8  # weights; means and variances; batches seen, an int64
    assert {name: results[1] for name, results in trained[0].items()} == {
        "local": [0, 0, whole, 0, 0, whole, 4],
        "warm-up": [whole + 4, whole + 4, whole + 4, 0, whole, 0, whole + 4],
        "fragments": [0, half, 0, half, 0, half, 4],
        "diloco": [0, whole, 0, whole, 0, whole, 4],
        "plain momentum": [half] * 6 + [half + 4],
        "each step": [whole] * 6 + [whole + 4],
        "ddp": [whole, whole + 24, *[whole] * 5],  # the second step also agrees on the order of buckets
        "normed": [0] * 6 + [norms + 4],
        "normed apart": [0] * 6 + [4],
    }


def test_buffers_are_averaged_with_the_weights(trained: Any) -> None:
    averaged, own = ([results[case][3] for results in trained] for case in ("normed", "normed apart"))
    for (ours, theirs), (first, second) in zip(zip(*averaged, strict=True), zip(*own, strict=True), strict=True):
        assert torch.equal(ours, theirs)
        mean = torch.stack([first, second]).mean(0) if ours.is_floating_point() else first
        assert_close(ours, mean, rtol=0, atol=1e-7)  # rounded once


def test_replicas_of_two_ranks_each_are_sharded(tmp_path: Path) -> None:
    """Four ranks: two replicas of two. What the ranks of a replica read is one batch to it."""
    sharded = DiLoCo(exchanges=Exchanges(every_steps=4, warmup_steps=1, fragments=2), replica=FSDP(shard_size=2))
    axes = sharded.axes(4)
    assert axes.names == (Axis.REPLICATE, Axis.SHARD)
    assert axes.independent == (Axis.REPLICATE,)
    ranks = on_ranks(4, train_each, (sharded, token_loss, adamw, 2), scratch=tmp_path, axes=axes)
    expected = by_hand(
        token_loss,
        adamw,
        outer=(0.7, 0.9, True),
        turns={3: FIRST, 5: SECOND, 7: FIRST},
        warmup=1,
    )
    for rank, ((weights, *_),) in enumerate(ranks):
        assert_close(weights, expected[rank // 2], rtol=0, atol=1e-6)  # fp32 sums in another order


def test_one_replica_is_an_ordinary_run() -> None:
    for strategy in (LocalSGD(), DiLoCo()):
        assert strategy.axes(1) == Axes(
            names=(Axis.REPLICATE,), sizes=(1,), data=(Axis.REPLICATE,), independent=(Axis.REPLICATE,)
        )
    whole = LocalSGD(replica=FSDP(shard_size=None)).axes(4)
    assert whole == Axes(names=(Axis.SHARD,), sizes=(4,), data=(Axis.SHARD,))
    with pytest.raises(ValueError, match=r"shard_size=3 does not divide the 4 ranks. Use 2 or 4"):
        LocalSGD(replica=FSDP(shard_size=3)).axes(4)


def test_fragments_take_turns() -> None:
    exchanges = Exchanges(every_steps=6, warmup_steps=2, fragments=3)
    assert [exchanges.fragment_after(step) for step in range(15)] == [
        *(None, None, None),
        *(None, 0, None, 1, None, 2),
        *(None, 0, None, 1, None, 2),
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"every_steps": 0}, "every_steps=0 must be at least 1"),
        ({"every_steps": 2, "warmup_steps": -1}, "warmup_steps=-1 must not be negative"),
        ({"every_steps": 2, "fragments": 3}, "fragments=3 must be from 1 to every_steps=2: one is exchanged after"),
    ],
)
def test_exchanges_that_cannot_be_are_refused(keys: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Exchanges(**keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"outer_lr": 0.0}, "outer_lr=0.0 must be above 0"),
        ({"outer_momentum": 1.0}, r"outer_momentum=1.0 must lie in \[0, 1\)"),
        ({"outer_momentum": 0.0}, "outer_momentum=0: outer_nesterov=true needs a momentum. Use outer_nesterov=false"),
    ],
)
def test_outer_settings_that_cannot_be_are_refused(keys: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiLoCo(**keys)


# ── Whole runs ───────────────────────────────────────────────────────────────────────────────────────────────────────

RUN = ["points", "model.dropout=0.2", "callback=[ema]", "run.steps=6", "eval.every_steps=3"]
RUN += ["checkpoint.every_steps=null", "hardware=cpu", "hardware.oversubscribe=true"]
WAYS = {
    "local_sgd": ["checkpoint=full", "hardware.processes=2"],
    "diloco": ["checkpoint.asynchronous=true", "hardware.processes=4", "strategy.shard_size=2"],
}


def assert_same_run(ended: Ended, expected: Ended) -> None:
    assert ended.metrics() == expected.metrics()
    ours, theirs = tensors(ended, 6, ""), tensors(expected, 6, "")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor.nan_to_num(), theirs[name].nan_to_num()), name


@pytest.mark.parametrize("strategy", WAYS)
def test_a_run_that_stopped_between_exchanges_goes_on_bit_by_bit(
    runner: Callable[..., Ended], tmp_path: Path, strategy: str
) -> None:
    options = [*RUN, f"strategy={strategy}", "strategy.every_steps=2", *WAYS[strategy]]
    expected = runner("train", *options)
    stopped = runner("train", *options, "run.stop_at_step=3")
    found = tensors(stopped, 3, "")
    replicas = [{name: one for name, one in found.items() if name.startswith(f"replica_{n}.")} for n in (0, 1)]
    for name in ("0.weight", "3.bias"):
        own = [replica[f"replica_{n}.model.{name}"] for n, replica in enumerate(replicas)]
        assert not torch.equal(*own)
        assert_close(found[f"model.{name}"], torch.stack(own).mean(0), rtol=0, atol=1e-7)  # rounded once
    measured = runner("evaluate", str(stopped.run_dir.path), "--step", "3")
    assert float(measured.stdout.split("eval/loss")[1].split()[0]) == pytest.approx(
        next(line["eval/loss"] for line in expected.metrics() if line["step"] == 3 and "eval/loss" in line), rel=1e-5
    )
    moved = Path(shutil.copytree(stopped.run_dir.path, tmp_path / "moved"))
    refused = runner("resume", str(moved), "strategy=ddp", code=2)
    rule = "strategy: 2 replicas with steps of their own would become one step of all ranks together, which makes it"
    assert rule in refused.stderr
    assert "--allow strategy" in refused.stderr
    assert_same_run(runner("resume", str(stopped.run_dir.path)), expected)
    resumed = runner("resume", str(moved), "strategy=ddp", "hardware.processes=2", "--allow", "strategy")
    assert resumed.run_dir.read_status()["state"] == "done"
