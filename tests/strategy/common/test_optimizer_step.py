"""torch's optimizers step as they do by themselves; a run that compiles nothing does not import torch's compiler."""

import copy
import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.profiler import profile

from runner.strategy.common.optimizer_step import OptimizerStep, without_dynamo

MODEL = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
OTHERS = ("Optimizer", "LBFGS", "SparseAdam", "Muon")
"""Those that need a closure, sparse gradients, or matrices only."""
TORCHS = [
    one
    for one in vars(torch.optim).values()
    if isinstance(one, type) and issubclass(one, Optimizer) and one.__name__ not in OTHERS
]
TRAIN_AND_RESUME = """
import sys
from pathlib import Path
from runner.cli.main import main
assert main(["train", "points", "run.steps=3", "run.dir=out", *sys.argv[1:]]) == 0
assert main(["resume", "out", "run.steps=5"]) == 0
assert "torch" in sys.modules
print("torch._dynamo" in sys.modules)
"""


def stepped(make: Callable[[Any], Optimizer], step: Callable[[Optimizer], Callable[[], Any]]) -> list[Tensor]:
    model = copy.deepcopy(MODEL)
    optimizer = make(model.parameters())
    take = step(optimizer)
    for number in range(3):
        torch.manual_seed(number)
        model(torch.randn(5, 3)).square().mean().backward()
        take()
        optimizer.zero_grad()
    return list(model.parameters())


@pytest.mark.parametrize("kind", TORCHS)
def test_weights_are_those_of_the_optimizers_own_step(kind: type[Optimizer]) -> None:
    make: Any = functools.partial(kind, lr=0.1)  # type: ignore[call-arg]
    ours = stepped(make, OptimizerStep)
    theirs = stepped(make, lambda optimizer: optimizer.step)
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))
    assert all(one.requires_grad and one.is_leaf for one in ours)


@pytest.mark.parametrize("register", [Optimizer.register_step_pre_hook, Optimizer.register_step_post_hook])
def test_hooks_of_the_step_are_called(register: Callable[..., Any]) -> None:
    optimizer, calls = AdamW(MODEL.parameters()), []
    step = OptimizerStep(optimizer)
    step()
    register(optimizer, lambda *args: calls.append(args[0]))
    step()
    assert calls == [optimizer]


def test_hooks_of_all_optimizers_are_called() -> None:
    optimizer, calls = SGD(MODEL.parameters()), []
    handle = register_optimizer_step_pre_hook(lambda *args: calls.append(args[0]))
    try:
        OptimizerStep(optimizer)()
    finally:
        handle.remove()
    assert calls == [optimizer]


def test_a_profiler_sees_the_step_by_its_name() -> None:
    step = OptimizerStep(AdamW(MODEL.parameters()))
    with profile() as profiler:
        step()
    assert "Optimizer.step#AdamW.step" in [event.key for event in profiler.key_averages()]


def test_a_step_that_was_replaced_on_the_object_is_called() -> None:
    optimizer, calls = SGD(MODEL.parameters()), []
    step = OptimizerStep(optimizer)
    vars(optimizer)["step"] = lambda: calls.append("replaced")
    step()
    assert calls == ["replaced"]


def test_the_step_of_another_librarys_class_is_called_with_its_decorators() -> None:
    calls = []

    def counted(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            calls.append("decorated")
            return function(*args)

        return wrapper

    class Own(Adam):
        @counted
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    OptimizerStep(Own(MODEL.parameters()))()
    assert calls == ["decorated"]


def test_nothing_of_the_block_remains() -> None:
    before = {name: vars(method.__wrapped__).copy() for name, method in _excluded().items()}
    with without_dynamo():
        optimizer = SGD(MODEL.parameters(), lr=0.1, momentum=0.9)
        optimizer.load_state_dict(optimizer.state_dict())
    assert {name: vars(method.__wrapped__) for name, method in _excluded().items()} == before


def _excluded() -> dict[str, Any]:
    return {name: getattr(Optimizer, name) for name in ("add_param_group", "state_dict", "load_state_dict")}


@pytest.mark.parametrize("words", [["optimizer=adamw"], ["optimizer=sgd", "precision=bf16", "clip.norm=1"]])
def test_a_run_without_compilation_does_not_import_the_compiler(project: Path, words: list[str]) -> None:
    command = [sys.executable, "-c", TRAIN_AND_RESUME, *words]
    program = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120, check=False)
    assert program.returncode == 0, program.stderr
    assert program.stdout.splitlines()[-1] == "False"
