"""What passes between the stages of a pipeline, and what is told of models and hooks that cannot be cut."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Module

from runner.errors import HookError
from runner.protocols import Clip, Loss, MicroBatch, StepBatches
from runner.strategy.fsdp.settings import ShardSettings
from runner.strategy.parallel import Parallel
from runner.strategy.parallel.carried import Carried, Record
from runner.strategy.parallel.outline import Outline
from runner.strategy.parallel.place_stages import StageSettings, _stage
from runner.strategy.parallel.schedule import PipelineSettings, Schedule
from runner.strategy.parallel.split import cut_model, holders_of, split_faults
from runner.world.solo import SoloWorld
from tests.strategy.parallel.small_gpt import CPU, Case, alone, assert_as_alone, prepare, step_batches, train
from tests.strategy.ranks import builder, on_ranks

WIDTH = 4


class Blocks(Module):
    """A stem, four blocks and a head; subclasses say how they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x).tanh()
        return self.head(x)


class ResidualOutside(Blocks):
    """Adds what goes into a block to what comes out of it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.head(x)


class Skips(Blocks):
    """Uses in the head what the stem has computed."""

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        y = stem * 2
        for block in self.blocks:
            y = block(y).tanh()
        return self.head(y + stem)


class SkipsFar(Blocks):
    """Uses in the head what comes out of every block, as the losses of routers are."""

    def forward(self, x: Tensor) -> Tensor:
        x, heard = self.stem(x), []
        for block in self.blocks:
            x = block(x).tanh()
            heard.append(x)
        return self.head(x) + torch.stack(heard).square().mean(dim=(0, 2)).unsqueeze(-1)


class SkipsAtRandom(Blocks):
    """Uses in the head what the stem has computed and a function at random has changed."""

    def forward(self, x: Tensor) -> Tensor:
        x = stem = nn.functional.dropout(self.stem(x), 0.5)
        for block in self.blocks:
            x = block(x).tanh()
        return self.head(x + stem)


class SkipsChanged(Blocks):
    """Uses in the head what the stem has computed, after changing it in place."""

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        x = stem.mul_(2)
        for block in self.blocks:
            x = block(x).tanh()
        return self.head(x + stem)


class Remembering(nn.Linear):
    """A block that keeps a loss of its own as an attribute."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        self.own_loss = x.square().mean()
        return x


class Remembers(Blocks):
    """Has such blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Remembering(WIDTH, WIDTH) for _ in range(4))


class Listing(nn.Linear):
    """A block that keeps its losses in a list."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        self.own_losses = [x.square().mean()]
        return x


class Buffering(nn.Linear):
    """A block that keeps its loss in a buffer."""

    own_loss: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        self.register_buffer("own_loss", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        self.own_loss = x.square().mean()
        return x


class Buffers(Blocks):
    """Has such blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Buffering(WIDTH) for _ in range(4))


class Lists(Blocks):
    """Has such blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Listing(WIDTH, WIDTH) for _ in range(4))


class Branches(Blocks):
    """Decides by a value of an activation."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) if x.sum() > 0 else block(-x)
        return self.head(x)


class HeadFirst(Blocks):
    """Defines the head before the blocks that it follows."""

    def __init__(self) -> None:
        super().__init__()
        blocks = self.blocks
        del self.blocks
        self.blocks = blocks


class Tables(Module):
    """Has a buffer that is in no checkpoint, and is given an activation only for its length."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(0, 1, 100), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.table[: len(x), None].to(x.dtype)
        return rows.cos(), rows.sin()


class Turning(Module):
    """A block that gets the tables."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        found: Tensor = self.linear(x * tables[0] + tables[1])
        return found


class TablesLast(Blocks):
    """Defines after the blocks what it calls before them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Turning() for _ in range(4))
        self.tables = Tables()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        tables = self.tables(x)
        for block in self.blocks:
            x = block(x, tables).tanh()
        return self.head(x)


class Means(Module):
    """Has no weights, but a running mean of its inputs, which checkpoints have."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean(dim=0), 0.1)
        return x - self.mean


class Centred(Blocks):
    """Subtracts running means on the first and on the last stage."""

    def __init__(self) -> None:
        super().__init__()
        blocks, head = self.blocks, self.head
        del self.blocks, self.head
        self.before, self.blocks, self.after, self.head = Means(), blocks, Means(), head

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(self.stem(x))
        for block in self.blocks:
            x = block(x).tanh()
        return self.head(self.after(x))


class Doubled(torch.autograd.Function):
    """Twice its input; its forward runs without gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class OwnGradient(Blocks):
    """Has a gradient of its own before every block."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(Doubled.apply(x)).tanh()
        return self.head(x)


class OwnParameter(Blocks):
    """Has a parameter of its own, which the first and the last stage use."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((WIDTH,), 1.5))
        self.register_buffer("offset", torch.tensor([0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.scale) * self.scale.sum() + self.offset


def squared(model: Module, batch: tuple[Tensor, Tensor]) -> Loss:
    """The squared error, summed."""
    inputs, targets = batch
    return Loss((model(inputs) - targets).square().sum(), len(inputs))


def twice(model: Module, batch: tuple[Tensor, Tensor]) -> Loss:
    """A hook that calls the model twice."""
    inputs, targets = batch
    return Loss((model(inputs) - model(targets.expand(-1, WIDTH))).square().sum(), len(inputs))


def with_penalty(model: Module, batch: tuple[Tensor, Tensor]) -> Loss:
    """A hook that adds a norm of all weights."""
    total, count, *_ = squared(model, batch)
    return Loss(total + sum(weight.square().sum() for weight in model.parameters()), count)


def with_remembered(model: Any, batch: tuple[Tensor, Tensor]) -> Loss:
    """A hook that adds what the blocks have kept."""
    total, count, *_ = squared(model, batch)
    return Loss(total + sum(block.own_loss for block in model.blocks), count)


def with_listed(model: Any, batch: tuple[Tensor, Tensor]) -> Loss:
    """A hook that adds what the blocks have in lists."""
    total, count, *_ = squared(model, batch)
    return Loss(total + sum(loss for block in model.blocks for loss in block.own_losses), count)


def noisy(model: Module, batch: tuple[Tensor, Tensor]) -> Loss:
    """A hook that draws noise, adds it to the input, and lets the model find it."""
    inputs, _ = batch
    noise = torch.randn(len(inputs), 1)
    return Loss((model(inputs + noise) - noise).square().sum(), len(inputs), {"noise": (noise.sum(), 1)})


def batch_of(windows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of numbers from windows of bytes, and targets."""
    rows = torch.stack([window[:WIDTH] if len(window) >= WIDTH else window.repeat(2)[:WIDTH] for window in windows])
    return rows.float() / 256, rows.float().mean(dim=1, keepdim=True) / 256


def case_of(build: Callable[[], Module], loss: Any = squared) -> Case:
    """A model and a hook."""

    def seeded() -> Module:
        torch.manual_seed(0)
        return build()

    return Case(seeded, loss, batch_of, {})


def part_of(**keys: Any) -> Parallel:
    """Two stages on two ranks."""
    return Parallel(pipeline=2, shard=1, pipelining=PipelineSettings(schedule=Schedule.ONE_F_ONE_B, **keys))


def outlined(build: Callable[[], Module], loss: Any = squared, num_stages: int = 2) -> Record:
    """What a model and a hook pass between stages."""
    model = build()
    cut = cut_model(model, num_stages=num_stages, split=[])
    outline = Outline(model, cut, holders_of(model, cut), lambda model, batch, items: loss(model, batch), CPU)
    rows = torch.ones(3, WIDTH)
    return outline.of(MicroBatch((rows, rows[:, :1]), 3), training=True)


def test_the_activation_before_a_block_is_carried_with_its_shape() -> None:
    record = outlined(Blocks, num_stages=3)
    assert [[(one.shape, one.trained) for one in carried] for carried in record.carried] == [[((3, WIDTH), True)]] * 2


@pytest.mark.parametrize(
    ("build", "loss", "message"),
    [
        (Branches, squared, "control flow cannot cross stages"),
        (HeadFirst, squared, "head belongs to stage 0 of the pipeline, since the model defines it there"),
        (Blocks, twice, "called twice for one micro-batch"),
        (Blocks, with_penalty, "stage 0 has, and stem.weight is not on that stage. Pass it through the blocks"),
        (Lists, with_listed, r"takes a tensor \[\] that stage 0 has, and blocks.0 does not return it"),
        (Buffers, with_remembered, r"takes a tensor \[\] that stage 0 has, and blocks.0 does not return it"),
        (SkipsAtRandom, squared, "drawn at random outside the modules that have weights"),
        (SkipsChanged, squared, "mul_ changes in place what stem returned, which a later stage"),
        (lambda: Blocks().requires_grad_(False), lambda model, batch: model.stem(batch[0]), "does not call blocks"),
    ],
)
def test_what_cannot_be_cut_is_told_before_anything_is_sent(
    build: Callable[[], Module], loss: Any, message: str
) -> None:
    with pytest.raises(HookError, match=message):
        outlined(build, loss)


def stage_of_two(index: int, build: Callable[[], Module], loss: Any) -> Any:
    """A stage in this process, and what passes between the two."""
    model = build()
    cut = cut_model(model, num_stages=2, split=[])
    holders = holders_of(model, cut)
    given = builder(build=build, optimizer=torch.optim.SGD, loss=loss)
    outline = Outline(model, cut, holders, given.loss, CPU)
    undivided = StageSettings(
        loss=given.loss,
        pipelining=PipelineSettings(),
        shards=ShardSettings(),
        sharing=None,
        plan=None,
        context=None,
        experts=None,
        expert_modules=[],
    )
    return _stage(model, index, cut, holders, outline, given, SoloWorld(CPU), undivided), outline


def last_of_two(build: Callable[[], Module], loss: Any) -> Any:
    """What the last stage makes of an activation that has arrived."""
    stage, outline = stage_of_two(1, build, loss)
    rows = torch.ones(3, WIDTH)
    micro_batch = MicroBatch((rows, rows[:, :1]), 3)
    record = outline.of(micro_batch, training=True)
    return stage(micro_batch, stage.visit(record, [torch.ones(3, WIDTH)], 0))


def test_an_activation_that_is_not_divided_as_planned_is_told() -> None:
    stage, _ = stage_of_two(0, Blocks, squared)
    planned = Carried(0, (3, WIDTH), torch.float32, True, part=(3, WIDTH // 2))
    with pytest.raises(
        HookError, match="that is whole on every rank, but by the shapes of the batch it should be divided"
    ):
        stage._sent("blocks.2", torch.ones(3, WIDTH), planned)


def test_stages_that_there_are_not_cannot_be_built_by_themselves() -> None:
    part = Parallel(pipelining=PipelineSettings(build_own_stages=True))
    spec: Any = SimpleNamespace(world_size=2)
    (fault,) = part.check(spec)
    assert fault.message.startswith("builds the stages of a pipeline, but strategy.pipeline=1.")


def test_the_last_stage_computes_the_loss_from_what_has_arrived() -> None:
    torch.manual_seed(0)
    model = Blocks()
    x = model.blocks[3](model.blocks[2](torch.ones(3, WIDTH)).tanh()).tanh()
    expected = (model.head(x) - 1).square().sum()
    torch.manual_seed(0)
    assert last_of_two(Blocks, squared).total.detach() == expected.detach()


def with_values(model: Module, batch: tuple[Tensor, Tensor]) -> Loss:
    """A hook that looks at the values of its loss, and computes with numpy."""
    total, count, *_ = squared(model, batch)
    assert total.item() >= 0
    return Loss(total * float(total.detach().numpy() > 0), count)


def test_a_hook_may_look_at_values_on_the_last_stage() -> None:
    build = case_of(Blocks).build
    assert outlined(build, with_values).carried == outlined(build).carried
    assert last_of_two(build, with_values).total == last_of_two(build, squared).total


def test_what_modules_have_returned_passes_through_all_stages_up_to_the_last_that_uses_it() -> None:
    record = outlined(SkipsFar, num_stages=4)
    extra = [[one.at[:1] for one in carried if not isinstance(one.at, int)] for carried in record.carried]
    blocks = [(f"blocks.{number}",) for number in range(4)]
    assert record.carried[0][0].shape == (3, WIDTH)
    assert extra == [blocks[:1], blocks[:2], blocks[:2]]  # what blocks.2 returned is where stage 3 begins


@pytest.mark.parametrize(
    ("build", "schedule", "split"),
    [
        (ResidualOutside, "1f1b", ["blocks.1"]),
        (OwnParameter, "1f1b", ["blocks.1"]),
        (OwnGradient, "1f1b", ["blocks.1"]),
        (Skips, "1f1b", ["blocks.1"]),
        (TablesLast, "1f1b", ["blocks.1"]),
        (Centred, "1f1b", ["blocks.1"]),
        (Centred, "zero_bubble_v", ["blocks.1", "blocks.2", "blocks.3"]),
        (TablesLast, "zero_bubble_v", ["blocks.1", "blocks.2", "blocks.3"]),
        (SkipsFar, "interleaved_1f1b", ["blocks.1", "blocks.2", "blocks.3"]),
        (SkipsFar, "zero_bubble_v", ["blocks.1", "blocks.2", "blocks.3"]),
    ],
)
def test_what_the_forward_holds_and_shares_reaches_every_stage(
    build: Callable[[], Module], schedule: str, split: list[str], tmp_path: Path
) -> None:
    settings = PipelineSettings(schedule=Schedule(schedule), stages_per_rank=(len(split) + 1) // 2, split=split)
    part, case = Parallel(pipeline=2, shard=1, pipelining=settings), case_of(build)
    expected = alone(case, 2, steps=2)
    for found in on_ranks(2, train, part, case, 2, None, 2, scratch=tmp_path, axes=part.axes(2)):
        assert found.losses == pytest.approx(expected.losses, rel=1e-6)
        for name, weight in expected.weights.items():
            torch.testing.assert_close(found.weights[name], weight, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("schedule", "split"), [("1f1b", ["blocks.1"]), ("zero_bubble_v", ["blocks.1", "blocks.2", "blocks.3"])]
)
def test_a_loss_that_blocks_keep_as_an_attribute_reaches_the_last_stage(
    schedule: str, split: list[str], tmp_path: Path
) -> None:
    settings = PipelineSettings(schedule=Schedule(schedule), stages_per_rank=(len(split) + 1) // 2, split=split)
    part, case = Parallel(pipeline=2, shard=1, pipelining=settings), case_of(Remembers, with_remembered)
    expected = alone(case, 2, steps=3)
    for found in on_ranks(2, train, part, case, 2, Clip(), 3, scratch=tmp_path, axes=part.axes(2)):
        assert_as_alone(found, expected)


def drawn(world: Any, part: Parallel, case: Case) -> Any:
    """The noise that was drawn, and a draw afterwards."""
    trainable = prepare(world, part, case)
    torch.manual_seed(3)
    losses = trainable.forward_backward(step_batches(world, case, 2)).losses
    return (
        [float(one.metrics["noise"][0]) for one in losses],
        float(torch.rand(())),
        float(next(iter(trainable.models["model"].parameters())).grad.norm()),
    )


def test_what_a_hook_draws_is_the_same_on_all_stages(tmp_path: Path) -> None:
    part, case = part_of(), case_of(Blocks, noisy)
    first, last = on_ranks(2, drawn, part, case, scratch=tmp_path, axes=part.axes(2))
    assert first[1] == last[1]
    model: Any = case.build()
    total = torch.zeros(())
    torch.manual_seed(3)
    seeds = torch.randint(2**62, (3,)).tolist()
    for seed, micro_batch in zip(seeds, batches(case), strict=False):
        torch.manual_seed(seed)
        loss = noisy(model, micro_batch.batch)
        assert last[0].pop(0) == pytest.approx(float(loss.metrics["noise"][0]))
        total = total + loss.total
    total.backward()
    assert first[2] == pytest.approx(float(model.stem.weight.grad.norm()), rel=1e-5)


def batches(case: Case) -> Any:
    """The micro-batches of a step in one process."""
    given: StepBatches = step_batches(SoloWorld(CPU), case, 2)
    return given.micro_batches


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (["blocks.7"], "blocks.7: the model has no such module. Did you mean blocks"),
        (["blocks"], "a list of modules is never called, so no stage can begin at it. Name its first member: blocks.0"),
        (["blocks.1", "blocks.2"], "2 modules begin 3 stages, but pipeline × stages_per_rank = 2"),
    ],
)
def test_a_split_that_cannot_be_is_told_before_launch(split: list[str], message: str) -> None:
    assert message in " ".join(fault.message for fault in split_faults(Blocks(), num_stages=2, split=split))


def test_too_few_blocks_are_told_with_what_could_begin_a_stage() -> None:
    (fault,) = split_faults(Blocks(), num_stages=5, split=[])
    assert "4 blocks" in fault.message
    assert "strategy.split" in fault.message


def test_stages_are_balanced_with_stem_and_head_counted() -> None:
    model = Blocks()
    model.head = nn.Linear(WIDTH, 100)
    assert cut_model(model, num_stages=2, split=[]).begins == ("blocks.3",)
    model.stem = nn.Linear(200, WIDTH)
    assert cut_model(model, num_stages=2, split=[]).begins == ("blocks.1",)


def test_modules_out_of_order_are_told() -> None:
    faults = split_faults(Blocks(), num_stages=3, split=["blocks.2", "blocks.1"])
    assert any("not in the order in which the model defines them" in fault.message for fault in faults)
