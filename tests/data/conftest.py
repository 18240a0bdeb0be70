"""A whole spec, for what is opened by one."""

import pytest

from runner.compose.compose import compose
from runner.compose.recipe import find


@pytest.fixture
def toy_spec(project, monkeypatch):
    """The recipe `points` in steps of 10 items."""
    monkeypatch.chdir(project)
    return compose(find("points"), ["batch.items=10", "hardware=cpu"]).read()
