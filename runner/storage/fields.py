"""JSON whose fields have the types and ranges that they should. Every fault is a ValueError that names the field."""

import json
import math
import reprlib
from collections.abc import Collection
from typing import Any

LARGEST = 2**63 - 1  # of an int64: what torch takes for a size
MAX_DIMS = 64  # as many as torch computes with
MAX_SHOWN = 160


def parse(data: bytes, *, finite: bool) -> dict[str, Any]:
    """A JSON object in UTF-8, without duplicate keys.

    Args:
        finite: refuse NaN and Infinity, which JSON lacks.

    Raises:
        ValueError: it is not one.
    """
    try:
        found = json.loads(
            data.decode(), object_pairs_hook=_object, parse_constant=_no_constant if finite else _constant
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if type(found) is not dict:
        raise ValueError(f"it is {shown(found)} instead of a JSON object")
    return found


def mapping(value: object, place: str, *, keys: Collection[str] | None = None) -> dict[str, Any]:
    """A JSON object; if keys are given, with exactly these."""
    if type(value) is not dict:
        raise ValueError(f"{place} is {shown(value)}, but must be an object")
    if keys is not None and value.keys() != set(keys):
        missing, unknown = sorted(set(keys) - value.keys()), sorted(value.keys() - set(keys))
        faults = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has an unknown {shown(unknown)}"] * bool(unknown)
        raise ValueError(f"{place} {' and '.join(faults)}")
    return value


def sequence(value: object, place: str) -> list[Any]:
    """A JSON array."""
    if type(value) is not list:
        raise ValueError(f"{place} is {shown(value)}, but must be an array")
    return value


def text(value: object, place: str) -> str:
    """A string without control characters, which a terminal would obey, and without halves of surrogate pairs."""
    if type(value) is not str or not value.isprintable():
        raise ValueError(f"{place} is {shown(value)}, but must be a printable string")
    return value


def whole_number(value: object, place: str, *, least: int = 0, most: int = LARGEST) -> int:
    """An integer in a range; true and false are none."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{place} is {shown(value)}, but must be a whole number from {least} to {most}")
    return value


def whole_numbers(value: object, place: str) -> tuple[int, ...]:
    """An array of integers from 0, such as a shape."""
    numbers = sequence(value, place)
    if len(numbers) > MAX_DIMS:
        raise ValueError(f"{place} has {len(numbers)} entries, but must have at most {MAX_DIMS}")
    return tuple(whole_number(one, f"{place}[{index}]") for index, one in enumerate(numbers))


def metric(value: object, place: str) -> float:
    """A number; null is NaN."""
    if value is None:
        return math.nan
    if (type(value) is int and abs(value) <= LARGEST) or (type(value) is float and math.isfinite(value)):
        return float(value)
    raise ValueError(f"{place} is {shown(value)}, but must be a finite number or null")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the key {shown(twice)} twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is not JSON")


def _constant(name: str) -> float:
    return float(name)


def shown(value: object) -> str:
    """The value in at most a few lines: what is long is abbreviated, control characters are escaped."""
    short = reprlib.Repr()
    short.maxstring = MAX_SHOWN
    return short.repr(value)
