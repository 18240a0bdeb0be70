"""Whether boxes fill a larger box, each point of it exactly once."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Where it starts and how long it is in each dim."""
MAX_CUT_DIMS = 8
"""A box counts twice as many corners for each dim in which it is cut. Meshes cut tensors in two or three."""


def fills(boxes: Sequence[Box], shape: tuple[int, ...]) -> bool:
    """Whether boxes inside a whole of this shape fill it, without gaps and without overlaps. Linear in their number.

    The sum of the boxes' indicator functions is that of the whole exactly if the signed corners of all boxes add up to
    the corners of the whole, since differences along each dim determine a function that is 0 outside.
    """
    whole = ((0,) * len(shape), shape)
    full = [box for box in boxes if 0 not in box[1]]
    if 0 in shape or not full:
        return 0 in shape
    cut = [dim for dim, length in enumerate(shape) if any(lengths[dim] != length for _, lengths in full)]
    if len(cut) > MAX_CUT_DIMS:
        return False
    corners: Counter[tuple[int, ...]] = Counter()
    for box in full:
        for corner, sign in _corners(box, cut):
            corners[corner] += sign
    for corner, sign in _corners(whole, cut):
        corners[corner] -= sign
    return not any(corners.values())


def _corners(box: Box, dims: Sequence[int]) -> Iterator[tuple[tuple[int, ...], int]]:
    """Each corner along these dims, with its sign: -1 for every dim in which it is the end."""
    offset, lengths = box
    for ends in product((0, 1), repeat=len(dims)):
        place = tuple(offset[dim] + lengths[dim] * end for dim, end in zip(dims, ends, strict=True))
        yield place, -1 if sum(ends) % 2 else 1
