"""Proof that overrides are valid: they compose with a recipe that ships, and its parts accept them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from runner.composition.compose import compose
from runner.composition.recipe import Recipe
from runner.config.run_spec import RunSpec

DIGITS = Recipe(Path(__file__).parents[2] / "recipes" / "digits.yaml")
ANY_MACHINE = ["hardware=cpu", "hardware.oversubscribe=true"]
"""In place of devices that this machine may not have."""


@pytest.fixture
def spec() -> Callable[[Sequence[str]], RunSpec]:
    """What overrides make of the recipe `digits`, as `runner check` reads it; raises what is wrong with it."""

    def read(overrides: Sequence[str]) -> RunSpec:
        others = [override for override in overrides if not override.startswith("hardware=")]
        return compose(DIGITS, [*ANY_MACHINE, *others]).read(rules=())

    return read
