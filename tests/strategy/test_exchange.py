"""DDP's communication hooks on real ranks: what each sends in a step, how near it comes, what goes together."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # the first optimizer step imports it: once, before forking
import torch.distributed as dist
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from runner import Loss
from runner.protocols import MicroBatch, StepBatches
from runner.strategy.ddp import DDP
from runner.strategy.ddp.exchange import CommHook, CommWrapper
from tests.conftest import Ended
from tests.parity.options import tensors
from tests.strategy.ranks import builder, model_of, on_ranks

WIDTH = 64
torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
NUMBERS = sum(parameter.numel() for parameter in MODEL.parameters())  # 2 × (64 × 64 + 64)
X, Y = torch.randn(16, WIDTH), torch.randn(16, WIDTH)
POWERSGD = {"comm_hook": CommHook.POWERSGD, "start_powerSGD_iter": 2}
BATCHED = POWERSGD | {"comm_hook": CommHook.BATCHED_POWERSGD}
HOOKS = {
    "none": {},
    "fp16": {"comm_hook": CommHook.FP16},
    "bf16": {"comm_hook": CommHook.BF16},
    "powersgd": POWERSGD,
    "batched_powersgd": BATCHED,
    "powersgd in fp16": POWERSGD | {"comm_wrapper": CommWrapper.FP16},
    "powersgd in bf16": POWERSGD | {"comm_wrapper": CommWrapper.BF16},
    "batched_powersgd in fp16": BATCHED | {"comm_wrapper": CommWrapper.FP16},
    "batched_powersgd in bf16": BATCHED | {"comm_wrapper": CommWrapper.BF16},
}
FACTORS = 2 * (WIDTH + WIDTH) + 2 * WIDTH  # of rank 1: a row and a column for each matrix, and the biases whole
SIDE = 92  # of the smallest square that holds all numbers: two factors of one column each
SENT = {  # bytes a step
    "none": 4 * NUMBERS,
    "fp16": 2 * NUMBERS,
    "bf16": 2 * NUMBERS,
    "powersgd": 4 * FACTORS,
    "batched_powersgd": 4 * 2 * SIDE,
    "powersgd in fp16": 2 * FACTORS,
    "powersgd in bf16": 2 * FACTORS,
    "batched_powersgd in fp16": 2 * 2 * SIDE,
    "batched_powersgd in bf16": 2 * 2 * SIDE,
}


class Sent(TorchDispatchMode):
    """Adds up the bytes of gradients handed to all-reduce: by C++, and by hooks, whose callbacks have their threads."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.by_hooks = False
        self._all_reduce = dist.all_reduce

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d" and not self.by_hooks:
            self.bytes += sum(tensor.nbytes for tensor in args[0])
        return func(*args, **(kwargs or {}))

    def count(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        self.bytes += tensor.nbytes
        return self._all_reduce(tensor, *args, **kwargs)


def mean_loss(model: Any, batch: Any) -> Any:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def many_tokens(model: Any, batch: Any) -> Any:
    """A total whose gradient float16 cannot hold: 2²⁴ times that of the mean."""
    x, y = batch
    return Loss((model(x) - y).square().mean(1).sum() * 2.0**24, torch.tensor(len(x) * 2**24))


def train(world: Any, options: Any, loss: Any, steps: Any, rounds: int = 1) -> Any:
    """Weights after some steps on this rank's half of the items, and the bytes of the last."""
    trainable = DDP(**options).prepare(
        builder(
            build=lambda: copy.deepcopy(MODEL),
            optimizer=lambda named: torch.optim.SGD([parameter for _, parameter in named], lr=0.1),
            loss=loss,
        ),
        world,
    )
    own = slice(world.rank * 8, world.rank * 8 + 8) if world.size > 1 else slice(16)
    parts = zip(X[own].chunk(rounds), Y[own].chunk(rounds), strict=True)
    batches = StepBatches([MicroBatch(part, len(part[0])) for part in parts], 16)
    for _ in range(steps):
        sent = Sent()
        sent.by_hooks = bool(options.get("comm_hook"))
        dist.all_reduce = sent.count if sent.by_hooks else sent._all_reduce
        with sent:
            trainable.forward_backward(batches)
        dist.all_reduce = sent._all_reduce
        trainable.update(measure=False)
    return (
        [parameter.detach() for parameter in model_of(trainable).parameters()],
        sent.bytes,
        trainable.state_dict().values,
    )


def train_each(world: Any, *several: Any) -> Any:
    """Several trainings by the same ranks."""
    return [train(world, *arguments) for arguments in several]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Twelve steps under each hook: for both ranks by name."""
    several = [(options, mean_loss, 12) for options in HOOKS.values()]
    ranks = on_ranks(2, train_each, *several, scratch=tmp_path_factory.mktemp("trained"))
    return [dict(zip(HOOKS, results, strict=True)) for results in ranks]


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_sends_what_it_promises_and_ends_near_the_whole_gradient(hook: str, trained: Any) -> None:
    pair, whole = [results[hook] for results in trained], trained[0]["none"][0]
    assert [sent for _, sent, _ in pair] == [SENT[hook]] * 2
    for ours, theirs in zip(pair[0][0], pair[1][0], strict=True):
        assert torch.equal(ours, theirs)  # however rough it is, all ranks do the same
    start = [parameter.detach() for parameter in MODEL.parameters()]
    moved = sum((a - b).square().sum() for a, b in zip(whole, start, strict=True)).sqrt()
    apart = sum((a - b).square().sum() for a, b in zip(whole, pair[0][0], strict=True)).sqrt()
    # Of the way gone in twelve steps: float16 keeps 11 bits, bfloat16 8, one column of 64 much less.
    allowed = {"none": 0.0, "fp16": 1e-3, "bf16": 1e-2}
    assert apart <= allowed.get(hook, 0.9) * moved


@pytest.mark.parametrize("hook", ["fp16", "powersgd in fp16"])
def test_a_total_over_a_million_tokens_travels_in_float16(hook: str, tmp_path: Path) -> None:
    both = [(HOOKS[hook], many_tokens, 2, 2), ({}, many_tokens, 2, 2)]
    ((ours, *_), (theirs, *_)), _ = on_ranks(2, train_each, *both, scratch=tmp_path)
    assert_close(ours, theirs, rtol=0, atol=1e-4)  # eleven bits of steps of 0.1 × a gradient below 0.1


def test_exchanging_in_each_round_gives_the_same_step(tmp_path: Path) -> None:
    both = [({"sync_each_round": True}, mean_loss, 3, 2), ({}, mean_loss, 3, 2)]
    ((each, *_), (last, *_)), _ = on_ranks(2, train_each, *both, scratch=tmp_path)
    assert_close(each, last, rtol=0, atol=1e-6)  # fp32 sums in another order


HARMLESS = [
    {"bucket_mibs": [0.01, 0.02]},
    {"init_sync": False},
    {"batched_grad_copy": True},
    {"find_unused_parameters": True, "skip_unused_parameters": True},
    {"static_graph": True},
    {"gradient_as_bucket_view": False},
    POWERSGD | {"start_powerSGD_iter": 10, "static_graph": True},
    POWERSGD | {"start_powerSGD_iter": 10, "find_unused_parameters": True},
]


def test_options_that_change_no_number_change_none(tmp_path: Path) -> None:
    several = [(options, mean_loss, 3) for options in ({}, *HARMLESS)]
    (expected, *others), _ = on_ranks(2, train_each, *several, scratch=tmp_path)
    for (weights, *_), options in zip(others, HARMLESS, strict=True):
        # Buckets of another size are summed in other pieces.
        assert_close(weights, expected[0], rtol=0, atol=1e-7, msg=f"{options} changes the weights")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"comm_wrapper": CommWrapper.FP16}, "comm_wrapper=fp16 only wraps PowerSGD, but comm_hook=none"),
        (
            {"comm_hook": CommHook.FP16, "comm_wrapper": CommWrapper.BF16},
            "Use comm_hook=bf16 alone, or comm_hook=power",
        ),
        ({"matrix_approximation_rank": 4}, "matrix_approximation_rank=4: comm_hook=none does not use it"),
        (
            BATCHED | {"min_compression_rate": 3.0},
            "rate=3.0: comm_hook=batched_powersgd does not use it",
        ),
        (POWERSGD | {"start_powerSGD_iter": 1}, "start_powerSGD_iter=1 must be at least 2 with use_error_feedback or"),
        (
            POWERSGD | {"sync_each_round": True},
            "sync_each_round=true would compress the gradients accumulated so far",
        ),
        ({"skip_unused_parameters": True}, "skip_unused_parameters=true needs find_unused_parameters=true or static"),
        ({"matrix_approximation_rank": 0}, "matrix_approximation_rank=0 must be at least 1"),
        ({"min_compression_rate": -1.0}, "min_compression_rate=-1.0 must not be negative"),
        ({"bucket_mibs": [0.0]}, r"bucket_mibs=\[0.0\] must all be positive"),
        ({"bucket_mib": 0.0}, "bucket_mib=0.0 must be positive"),
    ],
)
def test_what_does_not_go_together_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DDP(**options)


def test_powersgd_without_memory_may_begin_at_once() -> None:
    DDP(**POWERSGD | {"start_powerSGD_iter": 0, "use_error_feedback": False, "warm_start": False})


def test_a_moving_loss_scale_and_error_feedback_are_a_fault(runner: Callable[..., Ended]) -> None:
    hook = ["strategy=ddp", "strategy.comm_hook=powersgd", "precision=fp16"]
    ended = runner("check", "points", *hook, code=2)
    assert "strategy.comm_hook: powersgd adds the compression error of a step to the next" in ended.stderr
    runner("check", "points", *hook, "strategy.use_error_feedback=false")


def test_a_run_under_powersgd_goes_on_factoring_after_it_resumed(runner: Callable[..., Ended]) -> None:
    common = ["points", "strategy=ddp", "hardware.processes=2", "strategy.comm_hook=powersgd", "+model.width=64"]
    common += [
        "strategy.start_powerSGD_iter=2",
        "strategy.min_compression_rate=0.5",
        "optimizer=sgd",
        "optimizer.lr=0.1",
    ]
    whole = runner("train", *common)
    stopped = runner("train", *common, "run.stop_at_step=6")
    resumed = runner("resume", str(stopped.run_dir.path))
    assert resumed.metrics()[:6] == whole.metrics()[:6]
    theirs = tensors(whole, 10)
    for name, tensor in tensors(resumed, 10).items():
        # Steps 7 and 8 were exchanged whole instead of factored: a few steps of 0.1 × a gradient below 0.1.
        assert_close(tensor, theirs[name], rtol=0, atol=0.05)
    log = resumed.run_dir.rank_log(0).read_text()
    assert "PowerSGD continues after 2 steps with uncompressed gradients; the last compression error is lost" in log
