"""A user's directory with a launcher that only writes down what it was asked to do."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.cli.main import main

RECIPE = """\
# A line through noise.
defaults: [base, override /launch: noted, _self_]
name: tiny
model: {_target_: cli_hooks.build_model, width: 4}
data: {_target_: cli_hooks.load_data}
loss: {_target_: cli_hooks.loss}
batch: {items: 64}
run: {steps: 5}
"""
HOOKS = """\
import json, os
from contextlib import contextmanager
from dataclasses import dataclass
from runner.errors import Interrupted, RunFailed
from functools import partial
from runner.config.run_dir import RunDir
from runner.launch.attached import AttachedJob


def build_model(width=3): ...
def load_data(): ...
def loss(model, batch): ...


@dataclass(frozen=True, kw_only=True)
class Unforkable:
    processes: int = 1
    can_fork = False

    def check(self, spec):
        return ()


@dataclass(frozen=True, kw_only=True)
class Noted:
    fail: str = ""
    nodes = 1

    def check(self, spec):
        return ()

    @contextmanager
    def open(self, spec):
        yield Launch(self.fail, spec)


@dataclass(frozen=True)
class Launch:
    fail: str
    spec: object

    def begin(self, freeze):
        return freeze()

    def start(self, spec_path):
        return AttachedJob(run=partial(self.run, spec_path))

    def run(self, spec_path):
        run_dir = RunDir(spec_path.parent)
        noted = {"pid": os.getpid(), "spec": spec_path.name}
        (run_dir.path / "noted.json").write_text(json.dumps(noted))
        if self.fail == "failed":
            raise RunFailed("rank 0: it broke")
        if self.fail == "interrupted":
            raise Interrupted("stopped at step 3")
        if self.fail == "killed":
            os._exit(9)
        spec = self.spec
        run_dir.write_status("done", step=spec.run.steps, metrics={"eval/loss": float(spec.model.arguments["width"])})
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory of the test; leaves no trace in this process."""
    for name, text in {
        "recipes/tiny.yaml": RECIPE,
        "conf/launch/noted.yaml": "_target_: cli_hooks.Noted\nfail: ''\n",
        "cli_hooks.py": HOOKS,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    path, handlers = list(sys.path), list(logging.root.handlers)
    yield tmp_path
    sys.path[:] = path
    logging.root.handlers[:] = handlers  # a sweep has Hydra configure logging, onto a stream that ends with the test
    sys.modules.pop("cli_hooks", None)


@pytest.fixture
def runner(project: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run one command line in this process: exit code, stdout, stderr."""

    def run(*argv: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(argv)
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def command(project: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run one command line in a process of its own."""
    root = str(Path(__file__).resolve().parents[2])

    def run(*argv: str, python: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *python, "-m", "runner", *argv],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PYTHONPATH": root, **environment},
        )

    return run
