"""How far two runs of one declaration agree: their metrics step by step, and their newest checkpoints of one step."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from runner.config.damage import Damaged, read_text
from runner.config.run_dir import RunDir
from runner.storage.history import manifests
from runner.storage.tensors import Difference, tensor_differences

__all__ = ["Agreement", "agreement"]

OF_THE_MACHINE = ("step", "time_s")
"""Keys of a record that say when, and not what."""
Records = Mapping[int, Mapping[str, float]]
"""From a step to what was measured at it."""


class Differing(NamedTuple):
    """A value of a step that is not the same in both runs; nan = one of them lacks it."""

    step: int
    name: str
    was: float
    is_now: float

    @property
    def size(self) -> float:
        """How far the two are apart; infinite where one is missing or not finite."""
        apart = abs(self.was - self.is_now)
        return math.inf if math.isnan(apart) else apart


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What was compared, and what differs."""

    num_values: int
    """Values of records that were compared."""
    last_step: int
    """The last step that has any."""
    differing: list[Differing]
    """In the order of steps."""
    checkpoint: str
    """The newest checkpoint that both runs have; "" = there is none."""
    num_tensors: int
    tensors: list[Difference]
    """Those of that checkpoint that differ."""

    @property
    def is_bitwise(self) -> bool:
        """Whether everything that was compared is equal."""
        return not self.differing and not self.tensors

    def lines(self) -> Iterator[str]:
        """What a person reads."""
        if not self.differing:
            yield f"metrics: {self.num_values} values up to step {self.last_step} are equal, bit for bit"
        else:
            first, worst = self.differing[0], max(self.differing, key=lambda one: one.size)
            yield (
                f"metrics: they differ from step {first.step} on ({first.name}: {first.was!r} and {first.is_now!r}); "
                f"at most by {worst.size:.3g}, in {worst.name} of step {worst.step}"
            )
        if not self.checkpoint:
            yield "weights: not compared, since the runs have no checkpoint of the same step"
        elif not self.tensors:
            yield f"weights: {self.num_tensors} tensors of {self.checkpoint} are equal, bit for bit"
        else:
            worst_tensor = max(self.tensors, key=lambda one: one.size)
            yield (
                f"weights: {len(self.tensors)} of {self.num_tensors} tensors of {self.checkpoint} differ, at most by "
                f"{worst_tensor.size:.3g}, in {worst_tensor.name}"
            )


def agreement(before: RunDir, after: RunDir) -> Agreement:
    """Compare a run with another one of its declaration, up to the last step that the first has recorded.

    Raises:
        Damaged: metrics.jsonl of one of them holds something else than records.
        CheckpointError: a checkpoint is corrupted.
    """
    was, is_now = _records(before.metrics), _records(after.metrics)
    last_step = max(was, default=0)
    old, new = list(manifests(before.checkpoints)), {path.name for path in manifests(after.checkpoints)}
    common = max((path.name for path in old if path.name in new), key=_step, default="")
    num_tensors, tensors = 0, list[Difference]()
    if common:
        num_tensors, tensors = tensor_differences(before.checkpoints / common, after.checkpoints / common)
    return Agreement(
        num_values=sum(map(len, was.values())),
        last_step=last_step,
        differing=list(_differing(was, {step: values for step, values in is_now.items() if step <= last_step})),
        checkpoint=common,
        num_tensors=num_tensors,
        tensors=tensors,
    )


def _number(value: object) -> float:
    """A measured value; null stands for nan and infinity."""
    if value is None:
        return math.nan
    if not isinstance(value, int | float):
        raise TypeError(value)
    return float(value)


def _step(name: str) -> int:
    return int(name.removeprefix("step_"))


def _differing(was: Records, is_now: Records) -> Iterator[Differing]:
    for step in sorted({*was, *is_now}):
        before, after = was.get(step, {}), is_now.get(step, {})
        for name in dict.fromkeys((*before, *after)):
            pair = before.get(name, math.nan), after.get(name, math.nan)
            same = pair[0] == pair[1] or (name in before and name in after and all(map(math.isnan, pair)))
            if not same:
                yield Differing(step, name, *pair)


def _records(path: Path) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    try:
        lines = read_text(path).splitlines()
    except FileNotFoundError:
        return found
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            values = {name: _number(value) for name, value in record.items() if name not in OF_THE_MACHINE}
            found.setdefault(int(record["step"]), {}).update(values)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise Damaged(path, f"line {number} is not a record") from None
    return found
