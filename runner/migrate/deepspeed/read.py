"""A DeepSpeed file as lines: each leaf of its tree is an argument with a dotted name."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from runner.migrate.deepspeed.library import LIBRARY, PASSED_ON
from runner.migrate.deepspeed.training import AUTOMATIC, TRAINING
from runner.migrate.deepspeed.zero import ZERO_OPTIMIZATION, is_sharded
from runner.migrate.outcome import Argument, Outcome, Rule, Values
from runner.migrate.rules import adds, only_if
from runner.migrate.translate import Translated, is_given, translate

__all__ = ["SECTIONS", "TABLE", "deepspeed_lines", "leaves"]

TABLE: Mapping[str, Rule] = {**TRAINING, **ZERO_OPTIMIZATION, **LIBRARY}
SECTIONS = sorted({*(name.partition(".")[0] for name in TABLE), *PASSED_ON})
"""The names at the top of a file."""
AUTO = "auto"
SIZE = "DeepSpeed's default; for a size from the model's hidden size: ++strategy.config.{}=auto"
BY_HIDDEN_SIZE = {
    f"zero_optimization.{name}": SIZE.format(f"zero_optimization.{name}")
    for name in ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
}
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def deepspeed_lines(content: Mapping[str, Any], values: Values, *, origin: str, prefix: str = "") -> Translated:
    """Translate each key of a file.

    Args:
        values: arguments of the configuration that names the file.
        prefix: stands before each key that is shown.
    """
    found = dict(leaves(content))
    automatic = frozenset(name for name, value in found.items() if value == AUTO)
    given = {name: value for name, value in found.items() if is_given(value) and name not in automatic}
    arguments = {name: Argument(prefix + name, value) for name, value in found.items()}
    beside = {**values, **given, AUTOMATIC: automatic}
    return translate(arguments, lambda name: _rule(name, automatic), beside, origin=origin, known=[*TABLE, *SECTIONS])


def leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a tree by dotted name; lists and empty mappings are values."""
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _rule(name: str, automatic: frozenset[str]) -> Rule | None:
    if not NAME.fullmatch(name):
        return None
    sections = [name[: dot.start()] for dot in re.finditer(r"\.", name)]
    rule = TABLE.get(name) or next((TABLE[f"{one}.*"] for one in reversed(sections) if f"{one}.*" in TABLE), None)
    if rule is None and sections and sections[0] in PASSED_ON:
        rule = only_if(is_sharded, "a ZeRO stage above 0", {name: adds(f"strategy.config.{name}")})[name]
    if rule is None and any(known.startswith(f"{name}.") for known in (*TABLE, *(f"{one}.*" for one in PASSED_ON))):
        return _no_section
    return _automatic(name) if rule is not None and name in automatic else rule


def _automatic(name: str) -> Rule:
    return lambda value, values: Outcome(remark=BY_HIDDEN_SIZE.get(name, "the recipe's value"))


def _no_section(value: object, values: Values) -> Outcome:
    if value is False:
        return Outcome(remark="off")
    raise ValueError("must be a section of keys: {…}.")
