"""CPU time of a step that is compiled as a whole, beside a hand-written eager loop and one that compiles the same.

All take the same items in the same order with the same optimizer, in alternation; nothing is logged between steps. The
compilation itself is not in these times. The losses of the last step are compared with the eager loop's.

    OMP_NUM_THREADS=1 python benchmarks/compiled.py
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpt
import mlp
import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from runner import log
from runner.composition.compose import compose
from runner.composition.find_recipe import find
from runner.config.run_dir import RunDir
from runner.data.order import Shuffled
from runner.data.source import endless
from runner.engine.session import open_session
from runner.world.solo import SoloWorld
from runner.world.stop import StopRequest

CPU = torch.device("cpu")
WARM_UP = 5
Steps = Iterator[Tensor]
"""Takes a step whenever it is asked for the next loss."""


def engine(name: str, directory: Path) -> Steps:
    """The runner's steps with compile.what=step, from reading to the update."""
    recipe = find(str(Path(__file__).with_name(f"{name}.yaml")))
    spec = compose(recipe, ["compile.what=step", "run.steps=1000000"]).read()
    run_dir = RunDir(directory)
    log.setup(run_dir.rank_log(0), rank=0, console=False)
    with open_session(spec, run_dir, SoloWorld(CPU), StopRequest()) as session:
        for batches in endless(session.training.source):
            loss, _ = session.take_step(batches, measure=False)
            yield loss.losses[0].value


def batches_of(hooks: Any, items: int) -> Iterator[Any]:
    """The batches of a hand-written loop, in the runner's order."""
    data = hooks.build_data().train
    order = Shuffled(len(data), seed=0)
    epoch = 0
    while True:
        indices = order.indices(epoch, 0, len(data)).tolist()
        for first in range(0, len(data), items):
            yield data.__getitems__(indices[first : first + items])
        epoch += 1


def eager(hooks: Any, items: int, make: Callable[..., torch.optim.Optimizer]) -> Steps:
    """The loop that people write."""
    torch.manual_seed(0)
    model = hooks.build_model()
    optimizer = make(model.parameters())
    for batch in batches_of(hooks, items):
        loss = hooks.compute_loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach()


def compiled(hooks: Any, items: int, make: Callable[..., torch.optim.Optimizer]) -> Steps:
    """The same with forward, backward and update in a function that is compiled as one graph."""
    torch._dynamo.config.trace_autograd_ops = True
    torch.manual_seed(0)
    model = hooks.build_model()
    parameters = list(model.parameters())
    optimizer = make(parameters)
    group = optimizer.param_groups[0]
    lr = torch.tensor(group["lr"], dtype=torch.float64)
    update = _sgd if isinstance(optimizer, torch.optim.SGD) else _adamw
    state = [(torch.zeros(()), torch.zeros_like(one), torch.zeros_like(one)) for one in parameters if update is _adamw]

    @torch.compile(fullgraph=True)
    def step(batch: Any, lr: Tensor) -> Tensor:
        loss: Tensor = hooks.compute_loss(model, batch)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            update(parameters, gradients, state, lr)
        return loss.detach()

    for batch in batches_of(hooks, items):
        lr.fill_(group["lr"])
        yield step(batch, lr)


def _sgd(parameters: Any, gradients: Any, state: Any, lr: Any) -> None:
    momentum: list[Tensor | None] = [None] * len(parameters)
    sgd(
        parameters,
        gradients,
        momentum,
        foreach=True,
        weight_decay=0.0,
        momentum=0.0,
        lr=lr,
        dampening=0.0,
        nesterov=False,
        maximize=False,
    )


def _adamw(parameters: Any, gradients: Any, state: Any, lr: Any) -> None:
    steps = [step.double() for step, _, _ in state]
    adamw(
        parameters,
        gradients,
        [first for _, first, _ in state],
        [second for _, _, second in state],
        [],
        steps,
        foreach=True,
        capturable=True,
        amsgrad=False,
        beta1=0.9,
        beta2=0.999,
        lr=lr,
        weight_decay=0.01,
        eps=1e-8,
        maximize=False,
    )
    for (step, _, _), now in zip(state, steps, strict=True):
        step.copy_(now)


def compare(name: str, hooks: Any, items: int, make: Any, *, steps: int, repeats: int) -> None:
    """All loops in turn; prints medians and ratios of pairs."""
    with tempfile.TemporaryDirectory() as directory:
        loops = {
            "runner": engine(name, Path(directory)),
            "eager loop": eager(hooks, items, make),
            "compiled loop": compiled(hooks, items, make),
        }
        taken: dict[str, list[float]] = {one: [] for one in loops}
        last: dict[str, Tensor] = {}
        for loop in loops.values():
            for _ in range(WARM_UP):
                next(loop)
        for number in range(repeats):
            for one in loops if number % 2 else reversed(loops):
                began = time.process_time()
                for _ in range(steps):
                    last[one] = next(loops[one])
                taken[one].append((time.process_time() - began) / steps)
        for loop in loops.values():
            loop.close()  # type: ignore[attr-defined]
    for one, seconds in taken.items():
        ratios = [
            statistics.median(mine / theirs for mine, theirs in zip(seconds, taken[other], strict=True))
            for other in ("eager loop", "compiled loop")
        ]
        off = abs((last[one] - last["eager loop"]).item())
        micro = 1e6 * statistics.median(seconds)
        print(f"{name:5} {one:14} {micro:9.1f} {ratios[0]:9.3f} {ratios[1]:9.3f}   {off:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"{'':20} {'µs':>9} {'/ eager':>9} {'/ compiled':>10}  loss differs by   (CPU time of a step, medians)")
    sgd_of = lambda parameters: torch.optim.SGD(parameters, lr=0.01)  # noqa: E731
    compare("mlp", mlp, 32, sgd_of, steps=2000, repeats=repeats)
    compare("gpt", gpt, 16, torch.optim.AdamW, steps=15, repeats=repeats)


if __name__ == "__main__":
    main()
