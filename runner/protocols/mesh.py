"""The mesh of ranks: named axes with sizes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import product


class Axis(StrEnum):
    """The axes that a mesh may have; the values are the dimension names of torch's DeviceMesh."""

    REPLICATE = "replicate"
    """Ranks that hold equal copies of the model."""
    SHARD = "shard"
    """Ranks that share one copy of parameters, gradients or optimizer state."""
    PIPELINE = "pipeline"
    """Ranks that hold consecutive stages of the model."""
    CONTEXT = "context"
    """Ranks that hold different parts of the same sequences."""
    TENSOR = "tensor"
    """Ranks that hold parts of the same weight matrices."""
    EXPERT = "expert"
    """Ranks that hold different experts of a mixture."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The mesh that a strategy asks for. Pure arithmetic, so that it can be checked before launch.

    Ranks are numbered in row-major order: the last axis is the innermost, as in torch's DeviceMesh.
    """

    names: tuple[Axis, ...]
    """Names of the axes, outermost first."""
    sizes: tuple[int, ...]
    """Ranks along each axis."""
    data: tuple[Axis, ...]
    """The axes along which the items of a step are split; ranks that differ only on other axes read the same items."""
    partial: tuple[Axis, ...] = ()
    """Axes along which only some ranks have a loss, of all its items: stages of a pipeline."""
    independent: tuple[Axis, ...] = ()
    """Axes along which ranks take steps of their own: their weights differ between exchanges, and the result of a run
    depends on their number."""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.sizes) or len(set(self.names)) != len(self.names):
            raise ValueError(f"names={self.names} and sizes={self.sizes} must name each axis once, with its size.")
        if any(size < 1 for size in self.sizes):
            raise ValueError(f"sizes={self.sizes} must all be at least 1.")
        if unknown := {*self.data, *self.partial, *self.independent} - {*self.names}:
            named = f"data={self.data}, partial={self.partial} and independent={self.independent}"
            raise ValueError(f"{named} name {unknown}, not among {self.names}.")

    @property
    def loss(self) -> tuple[Axis, ...]:
        """The axes over which losses and counts are summed; along all others they are equal."""
        return tuple(name for name in self.names if name in (*self.data, *self.partial))

    @property
    def random(self) -> tuple[Axis, ...]:
        """The axes along which random numbers differ; along all others ranks draw the same.

        Stages of a pipeline do: what a loss hook draws before it calls the model is equal on all of them.
        """
        return tuple(name for name in self.loss if name is not Axis.PIPELINE)

    @property
    def data_ranks(self) -> int:
        """The number of parts that the items of a step are split into."""
        return self.size(self.data)

    def size(self, along: Iterable[Axis]) -> int:
        """The number of ranks along these axes; an axis that the mesh does not have counts as one of size 1."""
        wanted = set(along)
        return math.prod(size for name, size in zip(self.names, self.sizes, strict=True) if name in wanted)

    def groups(self, along: Iterable[Axis]) -> list[list[int]]:
        """All ranks in groups that differ along these axes only; each group in mesh order."""
        wanted = set(along)
        groups: dict[tuple[int, ...], list[int]] = {}
        for rank, coordinates in enumerate(product(*(range(size) for size in self.sizes))):
            fixed = tuple(at for name, at in zip(self.names, coordinates, strict=True) if name not in wanted)
            groups.setdefault(fixed, []).append(rank)
        return list(groups.values())


ALONE = Axes(names=(Axis.REPLICATE,), sizes=(1,), data=(Axis.REPLICATE,))
"""The mesh of a single process."""
