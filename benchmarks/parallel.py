"""CPU time of a step along each axis of strategy=parallel, beside a hand-written loop with the same parts of torch.

python benchmarks/parallel.py [--width 256] [--runs 7] [--turns 15] [--steps 3] [tensor shard context expert pipeline]

Two processes. The two loops take short turns, each with its own model; memory that is freed stays with the process.
What else differs by chance between two loops, such as where their models are in memory, is drawn again for each run.
Both must end with the same weights, to the bit except along context: there the hand-written loop cuts sequences as
torch's ring attention needs them, so that gradients are sums in another order.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single, all_to_all_single_autograd
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor.experimental._context_parallel import _attention as torch_ring
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from runner.model.experts import Experts, Groups, MixtureOfExperts
from runner.optimizer.sgd import SGD
from runner.protocols import Axis, Loss, MicroBatch, StepBatches
from runner.strategy.fsdp import FSDP
from runner.strategy.fsdp.settings import ShardSettings
from runner.strategy.fsdp.wrap import Wrap
from runner.strategy.parallel import Parallel
from runner.strategy.parallel.schedule import PipelineSettings
from runner.world.memory import keep_freed_blocks
from tests.strategy.ranks import builder, model_of, on_ranks

RANKS, DEPTH, ITEMS, MICRO_BATCHES = 2, 4, 64, 4
EXPERTS, TOP_K = 8, 2
HEAD, SEQUENCES, LENGTH = 64, 4, 1024
RATE = 1e-3
Step = Callable[[], None]
Loop = tuple[Step, Callable[[], list[Tensor]]]
"""A function that takes one step, and one that returns this rank's weights."""


class Block(nn.Module):
    """A feed-forward block with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.narrow(nn.functional.gelu(self.widen(self.norm(x))))
        return found


class Mixed(nn.Module):
    """A mixture of experts with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mixture = MixtureOfExperts(width=width, hidden=2 * width, num_experts=EXPERTS, top_k=TOP_K)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.mixture(self.norm(x)).output
        return found


class Attending(nn.Module):
    """Causal attention and a feed-forward block, each after a normalization and around a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attend: Callable[..., Tensor] | None = None  # None = torch's own, looked up when it is called
        self.feed_forward = Block(width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [items, length, width]; returns the same shape."""
        query, key, value = (
            one.unflatten(-1, (-1, HEAD)).transpose(1, 2) for one in self.qkv(self.norm(x)).chunk(3, dim=-1)
        )
        attend = self.attend or F.scaled_dot_product_attention
        mixed = attend(query, key, value, is_causal=True)
        found: Tensor = self.feed_forward(x + self.out(mixed.transpose(1, 2).flatten(2)))
        return found


def build_attending(width: int) -> nn.Sequential:
    """Blocks with attention, with the same weights on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(*(Attending(width) for _ in range(DEPTH)))


def build_mixtures(width: int) -> nn.Sequential:
    """Mixtures with the same weights on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(*(Mixed(width) for _ in range(DEPTH)))


def build(width: int) -> nn.Sequential:
    """Blocks with the same weights on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(*(Block(width) for _ in range(DEPTH)))


def loss(model: nn.Module, batch: Tensor) -> Loss:
    """The sum of squares, over the positions of the items."""
    return Loss(model(batch).square().sum(), batch.shape[:-1].numel())


def units(name: str) -> ShardSettings:
    """Blocks of this class are sharded one by one."""
    return ShardSettings(wrap_classes=[name], sync_buffers=False)


def items(part: int, parts: int, *shape: int) -> list[Tensor]:
    """This reader's micro-batches."""
    everything = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    return list(everything.chunk(parts)[part].chunk(MICRO_BATCHES))


def by_strategy(
    world: Any, width: int, part: Any, model: Callable[[int], nn.Module] = build, shape: Sequence[int] = (ITEMS,)
) -> Loop:
    """The strategy's step over activations of this shape and width."""
    given = builder(build=partial(model, width), optimizer=partial(SGD(lr=RATE).build, items=1), loss=loss)
    trainable = part.prepare(given, world)
    readers = world.along(*world.axes.data)
    read = items(readers.rank, readers.size, *shape, width)
    batches = StepBatches([MicroBatch(one, len(one)) for one in read], shape[0])

    def step() -> None:
        trainable.forward_backward(batches)
        trainable.update(measure=False)

    def weights() -> list[Tensor]:
        trainable.state_dict()  # reshards
        return [local(one) for one in model_of(trainable).parameters()]

    return step, weights


def local(parameter: Any) -> Tensor:
    """This rank's part."""
    part: Tensor = getattr(parameter, "_local_tensor", parameter)
    return part.detach()


def tensor_by_hand(world: Any, width: int) -> Loop:
    """Tensor parallelism by parallelize_module."""
    model = build(width)
    for block in model:
        plan = {"widen": ColwiseParallel(), "narrow": RowwiseParallel()}
        parallelize_module(block, world.mesh()[Axis.TENSOR], plan, src_data_rank=None)
    return trained(model, items(0, 1, ITEMS, width))


def shard_by_hand(world: Any, width: int) -> Loop:
    """Sharding by fully_shard; gradients are reduced in the last micro-batch."""
    return sharded(build(width), world.mesh()[Axis.SHARD], items(world.rank, world.size, ITEMS, width))


def sharded(model: Any, mesh: Any, micro_batches: list[Tensor], **options: Any) -> Loop:
    """The loop of `trained`, over a model whose blocks are sharded by fully_shard."""
    for block in model:
        fully_shard(block, mesh=mesh)
    root: Any = fully_shard(model, mesh=mesh)
    for unit in (root, *root):
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    step, _ = trained(model, micro_batches, last=root.set_requires_gradient_sync, **options)

    def weights() -> list[Tensor]:
        root.reshard()
        return [local(one) for one in model.parameters()]

    return step, weights


def context_by_hand(world: Any, width: int) -> Loop:
    """Sequences cut for torch's ring attention; parameters sharded by fully_shard.

    A rank has the same positions from the batch to the loss: the r-th of 2 n parts from the front, and from the back.
    """
    mesh = world.mesh()[Axis.CONTEXT]
    torch_ring._cp_options.enable_load_balance = True
    model: Any = build_attending(width)
    for block in model:
        block.attend = partial(RingAttention.call, mesh.get_group())

    def cut(batch: Tensor) -> Tensor:
        parts = batch.chunk(2 * world.size, dim=1)
        return torch.cat([parts[world.rank], parts[-1 - world.rank]], dim=1)

    return sharded(model, mesh, items(0, 1, SEQUENCES, LENGTH, width), cut=cut, count=SEQUENCES * LENGTH)


@final
class RingAttention(torch.autograd.Function):
    """torch's ring attention with the CPU's kernel."""

    @staticmethod
    def call(group: Any, query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool) -> Tensor:
        """[items, heads, positions of this rank, features]; returns the same shape."""
        mixed: Tensor = RingAttention.apply(group, query, key, value, is_causal)  # type: ignore[no-untyped-call]
        return mixed

    @staticmethod
    def forward(ctx: Any, group: Any, query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        out, logsumexp = torch_ring._templated_ring_attention(
            group, 2, kernel, query, key, value, is_causal, dropout_p=0.0
        )
        ctx.group, ctx.is_causal = group, is_causal
        ctx.save_for_backward(query, key, value, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ring: Any = torch_ring._templated_ring_attention_backward
        gradients = ring(
            ctx.group, 2, kernel_backward, gradient, "grad_out", *ctx.saved_tensors, ctx.is_causal, dropout_p=0.0
        )
        return None, *gradients, None


def kernel_backward(**given: Any) -> tuple[Tensor, ...]:
    """The CPU's kernel, by the names that torch's ring gives."""
    names = ("grad_out", "query", "key", "value", "out", "logsumexp", "dropout_p", "is_causal")
    kernel: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    gradients: tuple[Tensor, ...] = kernel(*(given[name] for name in names))
    return gradients


@final
class HandExperts(nn.Module):
    """This rank's experts, with tokens sent to those of the others."""

    def __init__(self, whole: Experts, world: Any) -> None:
        super().__init__()
        self.group, self.ranks = world.mesh().get_group(Axis.EXPERT), world.size
        self.num_own = EXPERTS // world.size
        own = slice(world.rank * self.num_own, (world.rank + 1) * self.num_own)
        self.gate_up, self.down = nn.Parameter(whole.gate_up[own].detach()), nn.Parameter(whole.down[own].detach())

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        groups = Groups(chosen, num_experts=EXPERTS)
        arriving = all_to_all_single(groups.counts, None, None, self.group)
        sizes = torch.stack([groups.counts, arriving]).view(2, self.ranks, self.num_own)
        sent, received = sizes.sum(dim=2).tolist()
        rows = all_to_all_single_autograd(x[groups.tokens], received, sent, self.group)
        by_expert = torch.arange(self.num_own).repeat(self.ranks).repeat_interleave(arriving).argsort(stable=True)
        offsets = sizes[1].sum(dim=0).cumsum(0, dtype=torch.int32)
        gate, up = F.grouped_mm(rows[by_expert], self.gate_up.transpose(1, 2), offs=offsets).chunk(2, dim=-1)
        outputs = F.grouped_mm(F.silu(gate) * up, self.down.transpose(1, 2), offs=offsets)
        in_order = torch.empty_like(outputs).index_copy(0, by_expert, outputs)
        return groups.combine(all_to_all_single_autograd(in_order, sent, received, self.group), weights)


def expert_by_hand(world: Any, width: int) -> Loop:
    """Experts by all_to_all_single_autograd; what is not experts is sharded by fully_shard."""
    model: Any = build_mixtures(width)
    mesh = world.mesh()[Axis.EXPERT]
    for block in model:
        block.mixture.experts = HandExperts(block.mixture.experts, world)
    root: Any = fully_shard(model, mesh=mesh, ignored_params={*expert_parameters(model)})
    root.set_gradient_divide_factor(1.0)
    root.set_force_sum_reduction_for_comms(True)
    step, _ = trained(model, items(world.rank, world.size, ITEMS, width), last=root.set_requires_gradient_sync)

    def weights() -> list[Tensor]:
        root.reshard()
        return [local(one) for one in model.parameters()]

    return step, weights


def expert_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The stacked weights."""
    for module in model.modules():
        if isinstance(module, HandExperts):
            yield from module.parameters()


def trained(
    model: nn.Module,
    micro_batches: list[Tensor],
    last: Callable[[bool], None] | None = None,
    *,
    cut: Callable[[Tensor], Tensor] = lambda batch: batch,
    count: int = ITEMS,
) -> Loop:
    """A loop over micro-batches, of which a rank takes what `cut` returns; the gradient of a step is divided once."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def step() -> None:
        for number, batch in enumerate(micro_batches, 1):
            if last is not None:
                last(number == len(micro_batches))
            model(cut(batch)).square().sum().backward()
        divide(model, count)
        optimizer.step()
        optimizer.zero_grad()

    return step, lambda: [local(one) for one in model.parameters()]


def divide(model: nn.Module, count: int = ITEMS) -> None:
    """Divide all gradients by the count of the step."""
    gradients = [local(one.grad) for one in model.parameters() if one.grad is not None]
    torch._foreach_mul_(gradients, torch.tensor(1 / count))


def pipeline_by_hand(world: Any, width: int) -> Loop:
    """A pipeline by PipelineStage and Schedule1F1B."""
    whole = build(width)
    half = DEPTH // RANKS
    model = nn.Sequential(*list(whole)[world.rank * half : (world.rank + 1) * half])
    group = world.mesh().get_group(Axis.PIPELINE)
    stage = PipelineStage(model, world.rank, RANKS, torch.device("cpu"), group=group)
    schedule = Schedule1F1B(stage, MICRO_BATCHES, loss_fn=lambda output, _: output.square().sum(), scale_grads=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    batch = torch.cat(items(0, 1, ITEMS, width))

    def step() -> None:
        if world.rank == 0:
            schedule.step(batch)
        else:
            schedule.step(target=batch, losses=[])
        divide(model)
        optimizer.step()
        optimizer.zero_grad()

    return step, lambda: [local(one) for one in model.parameters()]


class Case(NamedTuple):
    """What is compared along an axis."""

    part: Any
    by_hand: Callable[[Any, int], Loop]
    model: Callable[[int], nn.Module] = build
    shape: Sequence[int] = (ITEMS,)
    """Of all activations of a step, without their width."""
    bound: float = 0.0
    """How far the weights of the two loops may be apart."""
    share: float = 1.0
    """Of the steps in a turn, where each takes longer."""


PLAN = {"*.widen": "colwise", "*.narrow": "rowwise"}
AXES = {
    "tensor": Case(Parallel(tensor=2, shard=1, tensor_plan=PLAN), tensor_by_hand),
    "shard": Case(Parallel(shard=2, shards=units("Block")), shard_by_hand),
    "shard beside strategy=fsdp": Case(
        Parallel(shard=2, shards=units("Block")), partial(by_strategy, part=FSDP(settings=units("Block")))
    ),
    "context": Case(
        Parallel(context=2, shard=1, shards=units("Attending")),
        context_by_hand,
        build_attending,
        (SEQUENCES, LENGTH),
        bound=1e-6,  # 60 steps with gradients that are sums over 4096 positions; weights are at most 0.06, and 1
        share=0.1,
    ),
    "expert": Case(
        Parallel(expert=2, shard=1, shards=ShardSettings(wrap=Wrap.NONE, sync_buffers=False)),
        expert_by_hand,
        build_mixtures,
    ),
    "pipeline": Case(Parallel(pipeline=2, shard=1, pipelining=PipelineSettings()), pipeline_by_hand),
}


def measure(world: Any, axis: str, width: int, turns: int, steps: int) -> list[tuple[float, float]]:
    """Milliseconds of CPU time a step in each turn, of the strategy and of the loop by hand."""
    keep_freed_blocks()  # as a run's ranks do
    case = AXES[axis]
    ours, theirs = by_strategy(world, width, case.part, case.model, case.shape), case.by_hand(world, width)
    times = []
    for number in range(turns + 1):
        taken = []
        for step, _ in (ours, theirs) if number % 2 else (theirs, ours):
            world.barrier()
            start = time.process_time()
            for _ in range(steps):
                step()
            taken.append(1e3 * (time.process_time() - start) / steps)
        if number:  # the first one warms up
            times.append((taken[0], taken[1]) if number % 2 else (taken[1], taken[0]))
    for one, other in zip(ours[1](), theirs[1](), strict=True):
        apart = (one - other).abs().max().item()
        assert apart <= case.bound, f"{axis}: the two loops end with weights that are {apart:.1e} apart"
    return times


def main() -> None:
    """Print a row for each axis."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("axes", nargs="*", help="tensor, shard, context, expert, pipeline; all by default")
    parser.add_argument("--width", type=int, default=256, help="of the blocks")
    parser.add_argument("--runs", type=int, default=7, help="in new processes")
    parser.add_argument("--turns", type=int, default=15, help="in a run")
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args()
    print("| axis | strategy=parallel, ms of CPU time a step | by hand | ratio |\n|---|---|---|---|")
    for axis, case in AXES.items():
        if given.axes and not any(axis.startswith(one) for one in given.axes):
            continue
        turns = list[tuple[float, ...]]()
        for _ in range(given.runs):
            with tempfile.TemporaryDirectory() as scratch:
                args = (axis, given.width, given.turns, max(1, round(given.steps * case.share)))
                axes = case.part.axes(RANKS)
                of_ranks = on_ranks(RANKS, measure, *args, scratch=Path(scratch), timeout_s=300, axes=axes)
            turns += (tuple(map(sum, zip(*turn, strict=True))) for turn in zip(*of_ranks, strict=True))  # all ranks
        ours, theirs = (statistics.median(turn[which] for turn in turns) for which in (0, 1))
        ratio = statistics.median(ours / theirs for ours, theirs in turns)
        print(f"| {axis} | {ours:.2f} | {theirs:.2f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
