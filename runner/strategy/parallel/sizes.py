"""How many ranks a mesh has along each axis. Pure arithmetic, so that it is checked before launch."""

import math
from collections.abc import Mapping

from runner.protocols import Axes, Axis

AUTO = "auto"
ORDER = (Axis.PIPELINE, Axis.REPLICATE, Axis.SHARD, Axis.EXPERT, Axis.CONTEXT, Axis.TENSOR)
"""Outermost first, as torchtitan has it: those that communicate most are neighbours."""
DATA = (Axis.REPLICATE, Axis.SHARD, Axis.EXPERT)
PARTIAL = (Axis.PIPELINE,)
SHARERS = (Axis.SHARD, Axis.EXPERT, Axis.CONTEXT)
"""The axes along which ranks share what is not divided by experts; neighbours in the mesh."""
SHARERS_OF_EXPERTS = (Axis.SHARD, Axis.CONTEXT)
"""The axes along which ranks share the experts that each of them has."""


def axes_in(name: str) -> list[Axis]:
    """The axes in a dimension of a mesh, which may be several of them flattened."""
    return [Axis(part) for part in name.split("_")]


def size_of(axis: Axis, value: int | str) -> int | None:
    """Ranks along an axis; None for auto.

    Raises:
        ValueError: it is neither a whole number from 1 nor auto.
    """
    if value == AUTO:
        return None
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"{axis}={value} must be a whole number from 1, or auto for the ranks that are left.")
    return int(value)


def axes_of(sizes: Mapping[Axis, int | None], num_ranks: int) -> Axes:
    """The mesh of so many ranks.

    Args:
        sizes: ranks along each axis; None for the one that takes what is left.

    Raises:
        ValueError: the sizes do not multiply to the number of ranks; the message says which sizes would.
    """
    fixed = math.prod(size for size in sizes.values() if size is not None)
    left = next((axis for axis, size in sizes.items() if size is None), None)
    if num_ranks % fixed or (left is None and fixed != num_ranks):
        raise ValueError(_way_out(sizes, fixed, num_ranks, left))
    whole = {axis: num_ranks // fixed if size is None else size for axis, size in sizes.items()}
    # Shards are the inner axis of replicas for fully_shard, which therefore needs it even where its size is 1.
    names = tuple(axis for axis in ORDER if axis is Axis.SHARD or whole[axis] > 1)
    return Axes(
        names=names,
        sizes=tuple(whole[axis] for axis in names),
        data=tuple(axis for axis in DATA if axis in names),
        partial=tuple(axis for axis in PARTIAL if axis in names),
    )


def _way_out(sizes: Mapping[Axis, int | None], fixed: int, num_ranks: int, left: Axis | None) -> str:
    """Say which product the sizes have, and the nearest ones that fit."""
    product = " × ".join(f"{axis}={size}" for axis, size in sizes.items() if size not in (1, None)) or "1"
    if left is not None:
        rule = f"the sizes {product} = {fixed} do not divide the {num_ranks} ranks, so nothing is left for {left}"
    else:
        rule = f"the sizes {product} = {fixed} are not the {num_ranks} ranks"
    ways = []
    for axis in (Axis.SHARD, Axis.REPLICATE, Axis.EXPERT, Axis.CONTEXT, Axis.TENSOR, Axis.PIPELINE):
        size = sizes[axis]
        others = fixed // (size or 1)
        if size is not None and num_ranks % others == 0 and num_ranks // others != size:
            ways.append(f"strategy.{axis}={num_ranks // others}")
    above, below = -(-num_ranks // fixed) * fixed, num_ranks // fixed * fixed
    ways += [f"hardware.processes={ranks}" for ranks in dict.fromkeys((below, above)) if ranks and left is not None]
    if left is None:
        ways.append(f"{fixed} ranks")
    return f"{rule}. Use {', or '.join(ways)}."
