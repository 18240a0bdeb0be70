"""A whole spec, for what is opened by one."""

from pathlib import Path
from typing import Any

import pytest

from runner.composition.compose import compose
from runner.composition.find_recipe import find


@pytest.fixture
def toy_spec(project: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The recipe `points` in steps of 10 items."""
    monkeypatch.chdir(project)
    return compose(find("points"), ["batch.items=10", "hardware=cpu"]).read()
