"""CPU time of one optimizer step under the engine, compared with a hand-written loop that does the same work.

Both run in this process, in alternation: the same items in the same order, and every ten steps the loss, gradient norm
and learning rate as a line of JSON and a line for the reader. The final losses must agree.

    python benchmarks/step_overhead.py                 # all variants
    python benchmarks/step_overhead.py plain clip      # some
    python benchmarks/synchronisation.py               # two processes: gradient accumulation
"""

import argparse
import contextlib
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import TextIO

import mlp
import torch
from torch import nn

from runner import log
from runner.composition.compose import compose
from runner.composition.find_recipe import find
from runner.config.run_dir import RunDir
from runner.data.order import Shuffled
from runner.engine.loop import train
from runner.engine.session import open_session
from runner.world.solo import SoloWorld
from runner.world.stop import StopRequest

STEPS = 2000
LOG_EVERY = 10
RECIPE = Path(__file__).with_name("mlp.yaml")

VARIANTS: dict[str, list[str]] = {
    "plain": [],
    "accumulate 4": ["batch.micro_items=8"],
    "clip": ["clip.norm=0.1"],
    "schedule": ["schedule=cosine"],
    "bf16": ["precision=bf16"],
    "fp16": ["precision=fp16", "precision.init_scale=1024"],
    "tensorboard": ["tracker=[tensorboard]"],
    "ema": ["callback=[ema]", "callback.ema.start=copy"],
    "two callbacks": ["+callback.one._target_=mlp.CountsSteps", "+callback.two._target_=mlp.CountsSteps"],
}


def engine(overrides: list[str], directory: Path) -> tuple[float, float]:
    """CPU seconds of the engine's loop alone, and the last loss."""
    spec = compose(find(str(RECIPE)), [*overrides, f"run.steps={STEPS}", f"log.every_steps={LOG_EVERY}"]).read()
    run_dir = RunDir(directory)
    log.setup(run_dir.rank_log(0), rank=0, console=True)
    with open(directory / "terminal", "w") as terminal, contextlib.redirect_stderr(terminal):
        with open_session(spec, run_dir, SoloWorld(torch.device("cpu")), StopRequest()) as session:
            began = time.process_time()
            session.outcome = train(session)
        taken = time.process_time() - began  # trackers are closed by then
    log.close()
    return taken, session.training.metrics["train/loss"]


def by_hand(variant: str, directory: Path) -> tuple[float, float]:  # noqa: C901  one loop, as one would write it
    """The same for a hand-written loop."""
    torch.manual_seed(0)
    model = mlp.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / STEPS)))
    data = mlp.Points()
    num_micro_batches = 4 if variant == "accumulate 4" else 1
    items = 32 // num_micro_batches
    order = [
        index
        for epoch in range(-(-STEPS * 32 // mlp.ITEMS))
        for index in Shuffled(mlp.ITEMS, seed=0).indices(epoch, 0, mlp.ITEMS).tolist()
    ]
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(variant)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if variant == "fp16" else None
    averages = [parameter.detach().clone() for parameter in model.parameters()]
    counts = [mlp.Count(), mlp.Count()] if variant == "two callbacks" else []
    position, board = 0, None
    if variant == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(directory / "tensorboard")
    with open(directory / "metrics.jsonl", "w") as lines, open(directory / "terminal", "w") as terminal:
        began = time.process_time()
        for step in range(1, STEPS + 1):
            losses = []
            for _ in range(num_micro_batches):
                x, y = data.__getitems__(order[position : position + items])
                position += items
                with torch.autocast("cpu", narrow) if narrow else contextlib.nullcontext():
                    loss = mlp.compute_loss(model, (x, y))
                (
                    scaler.scale(loss) if scaler else loss / num_micro_batches if num_micro_batches > 1 else loss
                ).backward()
                losses.append(loss)
            if scaler:
                scaler.unscale_(optimizer)
            if variant == "clip":
                norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            elif step % LOG_EVERY == 0:
                norm = nn.utils.get_total_norm([one.grad for one in model.parameters() if one.grad is not None])
            lr = optimizer.param_groups[0]["lr"]
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            if variant == "schedule":
                schedule.step()
            optimizer.zero_grad()
            if variant == "ema":
                with torch.no_grad():
                    torch._foreach_lerp_(averages, list(model.parameters()), 1 - 0.999)
            for count in counts:
                count.after_step(None)
            if step % LOG_EVERY == 0:
                last = sum(loss.item() for loss in losses) / num_micro_batches
                record = {"train/loss": last, "train/grad_norm": norm.item(), "train/lr": lr}
                _record(record, step, lines, terminal)
                if board is not None:
                    for name, value in record.items():
                        board.add_scalar(name, value, step)
        if board is not None:
            board.close()
        taken = time.process_time() - began
    return taken, last


def _record(record: dict[str, float], step: int, lines: TextIO, terminal: TextIO) -> None:
    lines.write(json.dumps({"step": step, "time_s": time.monotonic(), **record}) + "\n")
    lines.flush()
    print(f"step {step}/{STEPS} | loss {record['train/loss']:.4g}", file=terminal, flush=True)


def ratios(variant: str, repeats: int) -> None:
    """Alternate the loops, and print medians, the ratio of each pair and whether the losses agree."""
    pairs = []
    losses = (math.nan, math.nan)
    loops = [lambda path: engine(VARIANTS[variant], path), lambda path: by_hand(variant, path)]
    for number in range(repeats + 1):  # the first pair warms up
        taken = [(0.0, 0.0), (0.0, 0.0)]
        for which in (0, 1) if number % 2 else (1, 0):  # each begins in turn
            with tempfile.TemporaryDirectory() as directory:
                taken[which] = loops[which](Path(directory))
        (mine, loss), (hand, loss_by_hand) = taken
        pairs.append((mine, hand))
        losses = loss, loss_by_hand
    pairs = pairs[1:]
    ratio = statistics.median(mine / hand for mine, hand in pairs)
    micro = [1e6 * statistics.median(times) / STEPS for times in zip(*pairs, strict=True)]
    agree = "bitwise" if losses[0] == losses[1] else f"differ by {abs(losses[0] - losses[1]):.1e}"
    print(f"{variant:14} {micro[0]:8.1f} {micro[1]:8.1f} {ratio:7.3f}   {agree}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("variants", nargs="*", default=list(VARIANTS), help=", ".join(VARIANTS))
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'variant':14} {'engine':>8} {'by hand':>8} {'ratio':>7}   losses        (µs of CPU a step, medians)")
    for variant in arguments.variants:
        ratios(variant, arguments.repeats)


if __name__ == "__main__":
    main()
