"""A setting is one word of Hydra's grammar, whatever text a stranger's file holds."""

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from runner.migrate.outcome import Change, Setting

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
PARSER = OverridesParser.create()


def resolved(override: str) -> Any:
    """The value of an override as a composed configuration has it."""
    parsed = PARSER.parse_override(override)
    return OmegaConf.to_container(OmegaConf.create({"key": parsed.value()}), resolve=True)["key"]  # type: ignore[index,call-overload]


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_hydra_reads_the_value_that_was_meant(value: Any) -> None:
    assert resolved(str(Setting("a.b", value))) == value


@pytest.mark.parametrize(
    "text",
    ["${oc.env:HOME}", "\\${x}", "a'b", "a\\'b", "a\\", "null", "True", "1e3", "a b", "[x]", "{a:b}", "x=y", "", "é"],
)
def test_text_stays_text(text: str) -> None:
    assert resolved(str(Setting("a", text))) == text


def test_a_key_may_be_added_or_removed() -> None:
    assert str(Setting("a.b", 1, change=Change.ADD)) == "++a.b=1"
    assert str(Setting("a.b", change=Change.REMOVE)) == "~a.b"
    assert (Setting("strategy", "ddp").is_choice, Setting("strategy.x", 1).is_choice) == (True, False)
