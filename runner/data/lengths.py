"""The lengths of items, by which a step is cut into micro-batches."""

import numpy

from runner.data.permutation import Indices
from runner.errors import DataError
from runner.protocols import Data

__all__ = ["lengths_of"]

WAY_OUT = "Give lengths: runner.Data(…, lengths=…), or an attribute lengths of the dataset. Or use batch.cut=even."


def lengths_of(data: Data, *, micro_tokens: int | None) -> Indices:
    """The length of each training item: [items].

    Args:
        micro_tokens: the most that one item may have; None = any.

    Raises:
        DataError: there are none, they are not one whole number for each item, or one is too large.
    """
    given = getattr(data.train, "lengths", None) if data.lengths is None else data.lengths
    if given is None:
        kind = type(data.train).__name__
        raise DataError(f"batch.cut=by_length needs the length of each item, which {kind} does not have. {WAY_OUT}")
    lengths = numpy.asarray(given)
    items = len(data.train)
    if lengths.shape != (items,) or lengths.dtype.kind not in "iu" or lengths.min() < 0:
        found = f"{lengths.dtype} values of shape {list(lengths.shape)}"
        raise DataError(f"the lengths of the training items must be {items} whole numbers, none negative: got {found}.")
    longest = int(lengths.argmax())
    if micro_tokens is not None and lengths[longest] > micro_tokens:
        rule = f"more than batch.micro_tokens={micro_tokens}: it fits into no micro-batch. Use at least as many."
        raise DataError(f"item {longest} of the training dataset has length {lengths[longest]}, {rule}")
    return lengths.astype(numpy.int64, copy=False)
