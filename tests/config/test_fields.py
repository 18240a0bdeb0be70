"""What is known of a key before it has a value is read off its dataclass."""

from dataclasses import MISSING, dataclass
from enum import Enum
from typing import Any, Literal

import pytest

from runner.config.fields import choices_of, keys_of, union_of
from runner.config.read import SECTIONS
from runner.config.rules import POSITIVE, SMALLEST, range_of
from runner.config.sections import flattened, leaf_names


class Kind(Enum):
    """A choice."""

    WARM = "warm"
    """Not
    cold."""
    COLD = "cold"


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Keys of several options."""

    every: int = 3
    """How often."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every={self.every} must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class Option:
    """A part."""

    needed: str
    """Must be given."""
    kind: Kind = Kind.WARM
    """Which."""
    factor: float = 0.5
    bare: int = 1
    shared: Shared = flattened(Shared, every=7)
    nested: Shared = Shared()
    """A section."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """A part with ranges."""

    share: float | None = 0.5
    """Of all."""
    free: int = 0
    """Any."""

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} must be above 0 and at most 1.")


def test_each_key_has_its_default_and_its_docstring() -> None:
    keys = {key.name: key for key in keys_of(Option)}
    assert list(keys) == leaf_names(Option) == ["needed", "kind", "factor", "bare", "every", "nested.every"]
    assert keys["needed"].default is MISSING
    assert (keys["every"].default, keys["nested.every"].default) == (7, 3)
    assert (keys["every"].meaning, keys["needed"].meaning, keys["bare"].meaning) == ("How often.", "Must be given.", "")
    assert keys["kind"].type == "warm | cold"


def test_the_rule_of_a_number_is_what_its_class_says() -> None:
    assert {key.name: key.rule for key in keys_of(Numbers)} == {"share": "must be above 0 and at most 1", "free": ""}
    assert {key.name: key.rule for key in keys_of(Shared)} == {"every": "must be at least 1"}


@pytest.mark.parametrize(
    ("hint", "choices"),
    [
        (Kind, {"warm": "Not cold.", "cold": ""}),
        (Kind | None, {"warm": "Not cold.", "cold": ""}),
        (int | Literal["auto"] | None, {"auto": ""}),
        (int, {}),
    ],
)
def test_a_closed_choice_has_its_values(hint: Any, choices: dict[str, str]) -> None:
    assert choices_of(hint) == choices


def test_a_type_that_is_no_union_is_one_of_one() -> None:
    assert union_of(int | None) == (int, type(None))
    assert union_of(list[int]) == (list[int],)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_a_section_says_what_it_is(section: str) -> None:
    assert all(key.meaning for key in keys_of(SECTIONS[section]))


def test_ranges_of_sections_are_those_that_are_enforced() -> None:
    known = {f"{section}.{name}" for section, cls in SECTIONS.items() for name in leaf_names(cls)}
    assert {*SMALLEST, *POSITIVE} <= known
    assert (range_of("run.steps"), range_of("clip.norm"), range_of("name")) == ("at least 1", "above 0", "")
