"""Chooses the linear layers that compute in float8 by name and shape only, so a model on the meta device is enough."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch.nn import Module

MULTIPLE = 16  # float8 hardware requires both sides of a matrix multiplication to be multiples of this


class LayerChoice(NamedTuple):
    """A linear layer and whether it is converted."""

    name: str
    shape: tuple[int, int]
    """Output and input features."""
    skip_reason: str
    """Why it is not converted; empty = it is."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """The rules that choose which layers are converted."""

    include: Sequence[str]
    """Name patterns of the layers to convert; empty = all."""
    exclude: Sequence[str]
    """Name patterns of the layers not to convert."""
    min_features: int
    """A layer whose smaller side is below this is not converted."""
    keep_first: bool
    keep_last: bool

    def choose(self, model: "Module") -> list[LayerChoice]:
        """Return one choice per linear layer, in the model's order."""
        from torch.nn import Linear

        linear = [(name, module) for name, module in model.named_modules() if isinstance(module, Linear)]
        names = [name for name, _ in linear]
        choices = []
        for name, module in linear:
            shape = (module.out_features, module.in_features)
            is_end = {"first layer": self.keep_first and name == names[0]}
            is_end["last layer"] = self.keep_last and name == names[-1]
            reasons = [reason for reason, holds in is_end.items() if holds]
            choices.append(LayerChoice(name, shape, next(iter([*reasons, *self._reasons(name, shape)]), "")))
        return choices

    def _reasons(self, name: str, shape: tuple[int, int]) -> Iterator[str]:
        if not name:
            yield "it is the whole model"
        if self.include and not any(fnmatchcase(name, pattern) for pattern in self.include):
            yield "no include pattern matches"
        yield from (f"matches exclude pattern {pattern}" for pattern in self.exclude if fnmatchcase(name, pattern))
        if min(shape) < self.min_features:
            yield f"{min(shape)} features are fewer than min_features={self.min_features}"
        if shape[0] % MULTIPLE or shape[1] % MULTIPLE:
            yield f"{shape[0]} × {shape[1]} are not both multiples of {MULTIPLE}"


def describe(choices: Sequence[LayerChoice]) -> list[str]:
    """Return lines for the log: the number of converted layers, then one line per layer."""
    converted = [layer for layer in choices if not layer.skip_reason]
    lines = [f"{len(converted)} of {len(choices)} linear layers in float8"]
    for layer in choices:
        outcome = f"not converted: {layer.skip_reason}" if layer.skip_reason else "float8"
        lines.append(f"  {layer.name or '(the model)'} {layer.shape[0]} × {layer.shape[1]}: {outcome}")
    return lines
