"""A step compiled as a whole trains as a hand-written loop does; what cannot be compiled is told with a reason."""

import copy
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.testing import assert_close

from runner import Loss
from runner.config.of_blocks import Compile
from runner.errors import HookError
from runner.model.compiling import compile_function
from runner.optimizer.adamw import AdamW
from runner.optimizer.sgd import SGD
from runner.precision.bf16 import BF16
from runner.protocols import Clip, MicroBatch, StepBatches, StepGraphs, StepsAtOnce
from runner.strategy.single import Single
from runner.world.solo import SoloWorld
from tests.conftest import Ended
from tests.strategy.ranks import builder

WORLD = SoloWorld(torch.device("cpu"))
STEPS = 5
AOT = Compile(backend="aot_eager")
"""The whole of torch.compile but its code generation, which takes ten times as long as the rest."""
TORCHS = {AdamW: torch.optim.AdamW, SGD: torch.optim.SGD}


class Net(nn.Module):
    """Two layers, one frozen, and a parameter that no loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(requires_grad=False)
        self.last = nn.Linear(8, 3)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Any:
        return self.last(torch.tanh(self.frozen(torch.tanh(self.first(x)))))


torch.manual_seed(0)
NET = Net()
X, Y = torch.randn(STEPS, 12, 6), torch.randint(0, 3, (STEPS, 12))
COUNTS = torch.tensor([1, 5, 2, 0, 3, 1, 4, 1, 1, 2, 6, 1])  # say, tokens of each item


def mean_loss(model: Any, batch: Any) -> Any:
    x, y, _ = batch
    return nn.functional.cross_entropy(model(x), y)


def token_loss(model: Any, batch: Any) -> Any:
    x, y, counts = batch
    each = nn.functional.cross_entropy(model(x), y, reduction="none")
    return Loss((each * counts).sum(), counts.sum(), metrics={"items": (counts.sum() * 0 + len(x), 1)})


def compiled(
    loss: Any, *, optimizer: Any, clip: Clip | None = None, how: Compile = AOT, precision: Any = None, net: Any = NET
) -> Any:
    graphs = StepGraphs(partial(compile_function, part=how), optimizer.graph_update())
    made = builder(
        build=lambda: copy.deepcopy(net),
        optimizer=partial(optimizer.build, items=12),
        loss=loss,
        clip=clip,
        precision=precision,
        step_graphs=graphs,
    )
    trainable = Single().prepare(made, WORLD)
    assert isinstance(trainable, StepsAtOnce)
    return trainable


def batches(step: int, lengths: Any) -> StepBatches:
    rounds, first = [], 0
    for length in lengths:
        part = slice(first, first + length)
        rounds.append(MicroBatch((X[step][part], Y[step][part], COUNTS[part]), length))
        first += length
    return StepBatches(rounds, first)


def by_hand(loss: Any, optimizer: torch.optim.Optimizer, model: nn.Module, clip: Clip) -> list[Any]:
    """The norms of the hand-written loop over whole batches: the oracle."""
    norms = []
    for step in range(STEPS):
        result = loss(model, (X[step], Y[step], COUNTS))
        (result.total / result.count if isinstance(result, Loss) else result).backward()
        gradients = [one.grad for one in model.parameters() if one.grad is not None]
        norms.append(nn.utils.get_total_norm(gradients))
        if clip.value:
            nn.utils.clip_grad_value_(model.parameters(), clip.value)
        if clip.norm:
            nn.utils.clip_grad_norm_(model.parameters(), clip.norm)
        optimizer.step()
        optimizer.zero_grad()
    return norms


STEPPED = {
    "adamw": (AdamW(lr=0.05), [12], Clip()),
    "adamw-accumulated": (AdamW(lr=0.05, weight_decay=0.3), [4, 4, 4], Clip(norm=0.05)),
    "sgd-value": (SGD(lr=0.3, weight_decay=0.1), [12], Clip(value=0.01)),
    "momentum-both": (SGD(lr=0.3, momentum=0.9, dampening=0.1), [5, 7], Clip(norm=0.05, value=0.02)),
    "nesterov": (SGD(lr=0.3, momentum=0.9, nesterov=True), [6, 6], Clip()),
}
SLICE = {("adamw-accumulated", token_loss, "aot_eager"), ("momentum-both", mean_loss, "aot_eager")}


def cases() -> Iterator[Any]:
    for name, words in STEPPED.items():
        for loss in (mean_loss, token_loss):
            for how in (AOT, Compile()):
                marks = () if (name, loss, how.backend) in SLICE else (pytest.mark.exhaustive,)
                yield pytest.param(how, loss, *words, marks=marks, id=f"{name}-{loss.__name__}-{how.backend}")


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's, in inductor
@pytest.mark.parametrize(("how", "loss", "optimizer", "lengths", "clip"), [*cases()])
def test_weights_and_norms_are_those_of_the_hand_written_loop(
    how: Compile, loss: Any, optimizer: Any, lengths: Any, clip: Clip
) -> None:
    trainable = compiled(loss, optimizer=optimizer, clip=clip, how=how)
    taken = [trainable.take_step(batches(step, lengths), measure=True) for step in range(STEPS)]
    model = copy.deepcopy(NET)
    names = ("lr", "weight_decay") + (("momentum", "dampening", "nesterov") if isinstance(optimizer, SGD) else ())
    settings = {name: getattr(optimizer, name) for name in names}
    norms = by_hand(loss, TORCHS[type(optimizer)](model.parameters(), **settings), model, clip)
    assert_close([update.grad_norm for _, update in taken], norms, rtol=1e-5, atol=1e-6)
    for name, ours in trainable.models["model"].state_dict().items():
        assert_close(ours, model.state_dict()[name], rtol=0, atol=2e-6, msg=name)
    losses, _ = taken[-1]
    assert float(losses.count) == (12 if loss is mean_loss else int(COUNTS.sum()))


def test_a_layer_that_only_an_earlier_micro_batch_uses_is_trained() -> None:
    def loss(model: Any, batch: Any) -> Tensor:
        x, y, _ = batch
        hidden = torch.tanh(model.first(x))
        hidden = torch.tanh(model.last(hidden)) if len(x) > 6 else hidden[:, :3]
        return nn.functional.cross_entropy(hidden, y)

    trainable = compiled(loss, optimizer=SGD(lr=0.3, weight_decay=0.1), how=Compile(backend="eager"))
    model = copy.deepcopy(NET)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, weight_decay=0.1)
    for step in range(STEPS):
        trainable.take_step(batches(step, [7, 5]), measure=False)
        for micro_batch, items in batches(step, [7, 5]).micro_batches:
            (loss(model, micro_batch) * items / 12).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, ours in trainable.models["model"].state_dict().items():
        assert_close(ours, model.state_dict()[name], rtol=0, atol=2e-6, msg=name)


def test_bf16_computes_in_bf16() -> None:
    trainable = compiled(mean_loss, optimizer=SGD(lr=0.3), precision=BF16())
    wide = compiled(mean_loss, optimizer=SGD(lr=0.3))
    for step in range(STEPS):
        (narrow, _), (exact, _) = (one.take_step(batches(step, [12]), measure=False) for one in (trainable, wide))
        assert narrow.losses[0].value.item() != exact.losses[0].value.item()
        assert_close(narrow.losses[0].value.float(), exact.losses[0].value, rtol=2e-2, atol=0)


def test_a_schedule_compiles_nothing_again() -> None:
    torch._dynamo.reset()  # what it has seen to change in other tests
    trainable = compiled(mean_loss, optimizer=AdamW(lr=0.05))
    graphs = []
    for step in range(STEPS):
        trainable.take_step(batches(step, [12]), measure=False)
        graphs.append(counters["stats"]["unique_graphs"])
        trainable.optimizers["model"].param_groups[0]["lr"] *= 0.9
    assert graphs[1] == graphs[0] + 1
    assert graphs[-1] == graphs[1]


def test_a_module_that_changes_between_steps_is_noticed() -> None:
    class Dropping(Net):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Any:
            return super().forward(self.dropout(x))

    net = Dropping()
    trainable = compiled(mean_loss, optimizer=SGD(lr=0.3), how=Compile(backend="eager"), net=net)
    model = trainable.models["model"]

    def matches() -> bool:
        with torch.no_grad():
            expected = nn.functional.cross_entropy(Net.forward(model, X[0]), Y[0])
        loss = trainable.take_step(batches(0, [12]), measure=False)[0].losses[0].value
        return bool(torch.isclose(loss, expected, atol=1e-6))

    assert not matches()
    assert not matches()  # the first graph
    model.dropout.eval()
    assert matches()
    model.dropout.train()
    assert not matches()
    with nn.modules.module.register_module_forward_hook(lambda module, given, found: 2 * found):
        model.dropout.eval()
        assert not matches()
    assert matches()


def test_the_state_is_that_of_the_optimizer() -> None:
    ours = compiled(mean_loss, optimizer=AdamW(lr=0.05))
    plain = Single().prepare(
        builder(build=lambda: copy.deepcopy(NET), optimizer=partial(AdamW(lr=0.05).build, items=12), loss=mean_loss),
        WORLD,
    )
    for step in range(2):
        ours.take_step(batches(step, [12]), measure=False)
        plain.forward_backward(batches(step, [12]))
        plain.update(measure=False)
    mine, theirs = (one.state_dict().optimizers["model"] for one in (ours, plain))
    assert mine.keys() == theirs.keys() == {"first.weight", "first.bias", "last.weight", "last.bias"}
    for name, slots in theirs.items():
        assert_close(mine[name], slots, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (lambda value: value if value.item() < 100 else value * 2, "data-dependent"),
        (lambda value: value if value < 100 else value * 2, "Data-dependent branching"),
    ],
)
def test_a_hook_that_reads_values_is_told_so(read: Callable[[Tensor], Tensor], says: str) -> None:
    trainable = compiled(lambda model, batch: read(mean_loss(model, batch)), optimizer=SGD(lr=0.3))
    trainable.take_step(batches(0, [12]), measure=False)  # without a graph
    with pytest.raises(HookError, match=rf"cannot compile the step as one graph: .*{says}.*compile\.what=model"):
        trainable.take_step(batches(1, [12]), measure=False)


def test_batches_of_many_shapes_are_told() -> None:
    fixed = compiled(mean_loss, optimizer=SGD(lr=0.3), how=Compile(backend="eager", dynamic=False))
    free = compiled(mean_loss, optimizer=SGD(lr=0.3), how=Compile(backend="eager"))
    for items in range(12, 3, -1):  # the first step is no graph
        free.take_step(batches(0, [items]), measure=False)
        fixed.take_step(batches(0, [items]), measure=False)
    free.take_step(batches(0, [3]), measure=False)
    with pytest.raises(HookError, match=r"the step was compiled 8 times.*compile\.dynamic=true or null"):
        fixed.take_step(batches(0, [3]), measure=False)


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.exhaustive)])
def test_a_resumed_run_repeats_the_uninterrupted_one(runner: Callable[..., Ended], backend: str) -> None:
    """With dropout, accumulation, a schedule, a last batch of another size, and an asynchronous save."""
    words = [
        "compile.what=step",
        f"compile.backend={backend}",
        "model.dropout=0.3",
        "batch.micro_items=4",
        "run.steps=8",
    ]
    words += ["schedule=cosine", "checkpoint.asynchronous=true"]
    whole = runner("train", "points", *words).metrics()
    begun = runner("train", "points", *words, "run.stop_at_step=4")
    resumed = runner("resume", str(begun.run_dir.path), "run.stop_at_step=null")
    assert resumed.metrics() == whole


def test_a_run_resumes_under_another_optimizer(runner: Callable[..., Ended], tmp_path: Path) -> None:
    """Whose state the first step makes, as without a graph."""
    begun = runner("train", "points", "run.steps=8", "run.stop_at_step=4", "optimizer=adamw")
    words = ["run.stop_at_step=null", "optimizer=sgd", "optimizer.lr=0.1", "optimizer.momentum=0.9"]
    losses = []
    for number, how in enumerate(([], ["compile.what=step", "compile.backend=eager"])):
        copied = shutil.copytree(begun.run_dir.path, tmp_path / str(number))
        lines = runner("resume", str(copied), *words, *how).metrics()
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
    assert len(losses[0]) == 8
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_a_layer_that_the_first_step_did_not_use_is_told() -> None:
    def loss(model: Any, batch: Any) -> Tensor:
        x, y, _ = batch
        hidden = torch.tanh(model.first(x))
        return nn.functional.cross_entropy(hidden[:, :3] if len(x) == 12 else model.last(hidden), y)

    trainable = compiled(loss, optimizer=AdamW(lr=0.05), how=Compile(backend="eager"))
    trainable.take_step(batches(0, [12]), measure=False)
    trainable.take_step(batches(1, [12]), measure=False)
    with pytest.raises(HookError, match=r"depends on last\.weight, last\.bias for the first time"):
        trainable.take_step(batches(2, [11]), measure=False)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["strategy=fsdp"], "strategy"),
        (["optimizer._target_=torch.optim.RMSprop"], "optimizer"),
        (["precision=fp16"], "precision"),
        (["guard.non_finite=skip"], "guard.non_finite"),
        (["batch.micro_items=auto"], "batch.micro_items"),
        (["activation_checkpointing.what=blocks", "blocks.classes=[Linear]"], "activation_checkpointing.what"),
    ],
)
def test_what_cannot_be_part_of_a_graph_is_a_fault(runner: Callable[..., Ended], words: Any, key: str) -> None:
    ended = runner("check", "points", "compile.what=step", *words, code=2)
    assert f"{key}: compile.what=step compiles the whole step, which cannot contain" in ended.stderr


def test_a_step_that_is_not_finite_is_explained(runner: Callable[..., Ended]) -> None:
    words = ["compile.what=step", "compile.backend=eager", "optimizer=sgd", "optimizer.lr=1e38"]
    ended = runner("train", "points", *words, code=6)
    assert "is not finite" in ended.stderr
