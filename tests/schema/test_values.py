"""The schema of a type accepts exactly what the runner converts to it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.composition.recipe import shipped_root
from runner.config.convert import ConversionError, convert
from runner.config.fields import Key, choices_of, keys_of
from runner.config.imports import locate
from runner.config.read import GROUPS, SECTIONS
from runner.schema.values import value_schema

CONF = shipped_root() / "conf"
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -3, 7.0, 1.5, -0.25, "", "text", "a/b", "3", "-3", "1.0", "2.5", "1e3", ".5", "inf"),
    *("true", "False", [], [1], [1, 2], [0.5, "0.5"], ["a"], ["a", "b"], [[1]], [{"a": 1}], [None], {}, {"a": 1}),
)


def hints() -> dict[str, Any]:
    """Every type of a key, by how it is written."""
    targets = {yaml.safe_load(path.read_text())["_target_"] for path in CONF.glob("*/*.yaml")}
    classes = [*SECTIONS.values(), *(locate(target) for target in (*sorted(targets), *filter(None, GROUPS.values())))]
    found = [key.hint for cls in classes for key in keys_of(cls)]
    further = [tuple[int, ...], dict[str, float], bool | None, list[bool] | None, float | str, Path | None, list[Any]]
    return {str(hint): hint for hint in (*found, *further)}


HINTS = hints()


@pytest.mark.parametrize("name", HINTS)
def test_a_value_is_valid_if_and_only_if_it_can_be_converted(name: str, draft7: Any) -> None:
    hint = HINTS[name]
    key = Key(name="key", hint=hint, default=None, meaning="", rule="")
    validator = draft7(value_schema(key, default=None))
    for value in (*VALUES, *choices_of(hint)):
        assert validator.is_valid(value) is _converts(hint, value), value
    for stands_for_a_value in ("${a.b}", "x-${oc.env:HOME}", "???"):
        assert validator.is_valid(stands_for_a_value), stands_for_a_value


def _converts(hint: Any, value: Any) -> bool:
    try:
        convert(hint, value)
    except ConversionError:
        return False
    return True
