"""Which linear layers compute in float8: decided by names and shapes alone, so that a model on meta is enough."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch.nn import Linear, Module

MULTIPLE = 16  # of what both sides of a float8 matrix product have to be on the hardware that has one


class Judged(NamedTuple):
    """A linear layer and what becomes of it."""

    name: str
    shape: tuple[int, int]
    """Output and input features."""
    kept: str
    """Why it stays as it is; empty = it is converted."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """What is converted."""

    include: Sequence[str]
    """Patterns of names; empty = all."""
    exclude: Sequence[str]
    """Patterns of names."""
    min_features: int
    """Smallest side."""
    keep_first: bool
    keep_last: bool

    def judge(self, model: Module) -> list[Judged]:
        """Every linear layer, in the model's order."""
        linear = [(name, module) for name, module in model.named_modules() if isinstance(module, Linear)]
        names = [name for name, _ in linear]
        judged = []
        for name, module in linear:
            shape = (module.out_features, module.in_features)
            is_end = {"it is the first": self.keep_first and name == names[0]}
            is_end["it is the last"] = self.keep_last and name == names[-1]
            reasons = [reason for reason, holds in is_end.items() if holds]
            judged.append(Judged(name, shape, next(iter([*reasons, *self._reasons(name, shape)]), "")))
        return judged

    def _reasons(self, name: str, shape: tuple[int, int]) -> Iterator[str]:
        if not name:
            yield "it is the whole model"
        if self.include and not any(fnmatchcase(name, pattern) for pattern in self.include):
            yield "no pattern of include has it"
        yield from (f"exclude has {pattern}" for pattern in self.exclude if fnmatchcase(name, pattern))
        if min(shape) < self.min_features:
            yield f"{min(shape)} features are fewer than min_features={self.min_features}"
        if shape[0] % MULTIPLE or shape[1] % MULTIPLE:
            yield f"{shape[0]} × {shape[1]} are not both multiples of {MULTIPLE}"


def lines(judged: Sequence[Judged]) -> list[str]:
    """For a person: how many, and each."""
    converted = [layer for layer in judged if not layer.kept]
    said = [f"{len(converted)} of {len(judged)} linear layers in float8"]
    for layer in judged:
        fate = f"as it is: {layer.kept}" if layer.kept else "float8"
        said.append(f"  {layer.name or '(the model)'} {layer.shape[0]} × {layer.shape[1]}: {fate}")
    return said
