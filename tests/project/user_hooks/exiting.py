"""Every hook and part of a run, and the phase in which one of its processes leaves by os._exit.

`exit.json` in the working directory names it: {"phase": "saving", "call": 1, "rank": "1", "code": 7}. Without that file
all of them are harmless, so that the run can be resumed as it was declared.
"""

import itertools
import json
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import get_worker_info
from user_hooks.points import Points, noisy_loss
from user_hooks.points import build_model as build_plain_model

from runner import Data
from runner.schedule.factor import FactorScheduler

FILE = Path("exit.json")
PAYLOAD = re.compile(r".*/step_\d+\.partial-[^/]+/[^/]+\.safetensors")
CALLS: Counter[str] = Counter()


def reached(phase: str) -> None:
    """Leave if this is the process, the phase and the call that the file names. A launcher has no rank: ""."""
    if (found := planned(phase)) and found["rank"] == os.environ.get("RANK", ""):
        CALLS[phase] += 1
        if CALLS[phase] == found["call"]:
            os._exit(found["code"])


def planned(phase: str) -> Any:
    """What the file says, if it names this phase."""
    found = json.loads(FILE.read_text()) if FILE.exists() else {"phase": None}
    return found if found["phase"] == phase else None


def watch_files(event: str, arguments: tuple[Any, ...]) -> None:
    """Phases of a save, by the files that it opens and renames, and the replacement of any other file of the run."""
    if event == "open" and PAYLOAD.fullmatch(str(arguments[0])):
        reached("payload")
    elif event == "os.rename":
        before, after = map(str, arguments[:2])
        if ".partial-" in after:
            reached("deletion")
        elif ".partial-" in before:
            reached("commit" if "/step_" in before else "replacement")


if any(map(planned, ("payload", "commit", "deletion", "replacement"))):
    sys.addaudithook(watch_files)
reached("import")


class Items(Points):  # type: ignore[misc]  # found where the run is
    """Points, read by the rank itself or by a worker."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        reached("item" if get_worker_info() is None else "worker")
        return super().__getitem__(index)


class Gradient(torch.autograd.Function):
    """The identity, whose backward may not return."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        reached("backward")
        return gradient


class Model(nn.Module):
    """Its forward and its backward."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.inner = build_plain_model(dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            reached("forward")
        return Gradient.apply(self.inner(x))


def build_model(dropout: float = 0.0) -> nn.Module:
    reached("model")
    Finalize(None, reached, ("finished",), exitpriority=1)
    return Model(dropout)


def build_data() -> Data:
    reached("data")
    return Data(train=Items(50, 0), eval=Points(17, 1))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    reached("loss" if torch.is_grad_enabled() else "evaluation")
    return noisy_loss(model, batch)


class Optimizer(torch.optim.AdamW):
    """Its construction over a model's parameters, and its step."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        groups = [*params]
        if any(isinstance(group, dict) for group in groups):  # the declaration's check has a single scalar
            reached("optimizer")
        super().__init__(groups, lr=lr)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # nobody gives it a closure
        reached("update")
        super().step()


@final
@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A constant rate."""

    def check(self, spec: Any) -> Iterable[Any]:
        return ()

    def build(self, optimizer: Any, *, steps: int) -> FactorScheduler:
        reached("schedule")
        return FactorScheduler(optimizer, lambda done: 1.0)


@final
@dataclass(frozen=True, kw_only=True)
class Metric:
    """The number of micro-batches that this rank has evaluated."""

    def check(self, spec: Any) -> Iterable[Any]:
        return ()

    def build(self, *, name: str, on_device: bool) -> "Meter":
        return Meter()


@final
class Meter:
    """A count."""

    def __init__(self) -> None:
        self._count = itertools.count(1)
        self._last = 0

    def update(self, loss: Any) -> None:
        reached("metric")
        self._last = next(self._count)

    def merge(self, world: Any) -> None:
        reached("merging metrics")

    def compute(self) -> dict[str, float]:
        return {"micro_batches": float(self._last)}


@final
@dataclass(frozen=True, kw_only=True)
class Callback:
    """Listens to everything."""

    def check(self, spec: Any) -> Iterable[Any]:
        return ()

    def build(self) -> "Listener":
        return Listener()


@final
class Listener:
    """Every event of a run."""

    def before_run(self, run: Any) -> None:
        reached("before_run")

    def after_run(self, run: Any, outcome: Any) -> None:
        reached("after_run")

    def after_step(self, run: Any) -> None:
        reached("after_step")

    @contextmanager
    def around_step(self, run: Any) -> Iterator[None]:
        reached("around_step")
        yield

    @contextmanager
    def around_eval(self, run: Any) -> Iterator[None]:
        reached("around_eval")
        yield

    def after_eval(self, run: Any, metrics: Mapping[str, float]) -> None:
        reached("after_eval")
        if found := planned("waiting"):
            leave: Callable[[], None] = lambda: reached("waiting")  # noqa: E731
            if found["rank"] == os.environ["RANK"]:
                threading.Timer(0.3, leave).start()
            else:
                time.sleep(1)  # the other rank waits meanwhile, with nothing of the hooks on its main thread

    def after_save(self, run: Any, checkpoint: Path) -> None:
        reached("after_save")

    def state_dict(self) -> dict[str, int]:
        reached("state_dict")
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        reached("load_state_dict")

    def tensors(self, trainable: Any) -> dict[str, Tensor]:
        reached("tensors")
        return {}
