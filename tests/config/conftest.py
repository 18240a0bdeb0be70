"""A configuration that is right, and parts that need neither torch nor a device."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.config.read import read
from runner.errors import Fault, SpecError

PARTS = '''
from dataclasses import dataclass, field
from enum import Enum
from runner.errors import Fault
from runner.protocols import Axes
from runner.config.files import JsonFile


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A part of a group that is not looked at."""

    width: int = 1
    rate: float = 0.5
    color: Color = Color.RED
    pair: tuple[float, float] = (0.9, 0.99)
    names: list[str] = field(default_factory=list)
    limit: float | None = None

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError(f"rate={self.rate} must not be negative.")

    nodes = 1  # as a launcher

    def check(self, spec):
        if self.width > spec.run.steps:
            yield Fault(key="checkpoint.width", message=f"{self.width} is wider than run.steps={spec.run.steps}.")


@dataclass(frozen=True, kw_only=True)
class Needs:
    must: int

    def check(self, spec):
        return ()


@dataclass(frozen=True, kw_only=True)
class Told:
    """A part that is told of a file."""

    file: JsonFile | None = None

    def check(self, spec):
        if self.file is not None and self.file.parsed.get("width", 0) > spec.run.steps:
            yield Fault(key="checkpoint.file", message=f"{self.file.path} is too wide.")


@dataclass(frozen=True, kw_only=True)
class Machine:
    processes: int = 1

    def check(self, spec):
        return ()


@dataclass(frozen=True, kw_only=True)
class Cut:
    def check(self, spec):
        return ()

    def axes(self, num_ranks):
        if num_ranks == 13:
            raise ValueError("13 ranks cannot be arranged. Use 12 or 14.")
        return Axes(names=("replicate",), sizes=(num_ranks,), data=("replicate",))


@dataclass(frozen=True, kw_only=True)
class Adapter:
    positional = 1
    target: str
    arguments: dict
    no_decay: list[str] = field(default_factory=list)

    def check(self, spec):
        return ()


class Rival:
    """Something of another library."""

    def __init__(self, params, lr=0.1, *, momentum=0.0):
        raise AssertionError("a check calls nothing")


def build_model(width=3, depth=1):
    raise AssertionError("a check calls nothing")


def load_data():
    raise AssertionError("a check calls nothing")


def loss(model, batch, smoothing=0.0):
    raise AssertionError("a check calls nothing")


def loss_of_batch(batch):
    raise AssertionError("a check calls nothing")


NUMBER = 3
'''


@pytest.fixture(autouse=True)
def parts(tmp_path: Path) -> Iterator[Path]:
    """An import root with a module `spec_parts`; leaves no trace in this process."""
    (tmp_path / "spec_parts.py").write_text(PARTS)
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("spec_"):
            del sys.modules[name]


@pytest.fixture
def config() -> dict[str, Any]:
    """A whole configuration in which nothing is wrong."""
    part = {"_target_": "spec_parts.Plain"}
    return {
        "name": "toy",
        "model": {"_target_": "spec_parts.build_model", "width": 4},
        "data": {"_target_": "spec_parts.load_data"},
        "loss": {"_target_": "spec_parts.loss"},
        "batch": {"items": 12, "micro_items": None, "accumulate": None},
        "run": {"steps": 8, "seed": 0, "deterministic": False, "stop_at_step": None, "dir": None},
        "loader": {"workers": 0, "prefetch": 2},
        "clip": {"norm": None, "value": None},
        "eval": {"every_steps": None, "at_start": False, "at_end": True, "micro_items": None},
        "log": {"every_steps": 10},
        "sweep": {"dir": None},
        "hardware": {"_target_": "spec_parts.Machine", "processes": 1},
        "strategy": {"_target_": "spec_parts.Cut"},
        **{group: dict(part) for group in ("launch", "precision", "optimizer", "order", "schedule", "checkpoint")},
        "tracker": {"first": dict(part)},
        "callback": {},
    }


@pytest.fixture
def faults(config: dict[str, Any], parts: Path) -> Callable[[dict[str, Any]], dict[str, str]]:
    """What is wrong with the configuration after dotted changes: key to message."""

    def find(changes: dict[str, Any]) -> dict[str, str]:
        for key, value in changes.items():
            node = config
            *above, name = key.split(".")
            for step in above:
                node = node.setdefault(step, {})
            node[name] = value
        try:
            read(config, import_roots=[str(parts)])
        except SpecError as wrong:
            return {fault.key: fault.message for fault in wrong.faults if isinstance(fault, Fault)}
        return {}

    return find
