"""A user's directory: a recipe, an option of their own, and hooks."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

RECIPE = """\
# A line through noise.
defaults:
  - base
  - override /optimizer: sgd
  - _self_
name: tiny
model: {_target_: compose_hooks.build_model, width: 4}
data: {_target_: compose_hooks.load_data}
loss: {_target_: compose_hooks.loss}
batch: {items: 64}
run: {steps: 5}
optimizer: {lr: 0.05}
"""
HOOKS = """\
def build_model(width=3): ...
def load_data(): ...
def loss(model, batch): ...
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory of the test; leaves no trace in this process."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "compose_hooks.py").write_text(HOOKS)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("compose_hooks", None)
