"""Reports every out-of-memory error as one class of error, with suggestions."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from runner.engine.fit_batch import is_out_of_memory
from runner.errors import OutOfMemoryError

WAY_OUT = (
    "Use a smaller batch.micro_items, or let batch.micro_items=auto find the largest that fits: batch.items and the "
    "result stay the same. activation_checkpointing.what=blocks, precision=bf16 and strategy=fsdp need less memory."
)


@contextmanager
def report_out_of_memory() -> Iterator[None]:
    """Convert the out-of-memory errors of torch, Python and allocators into the runner's own error.

    Raises:
        OutOfMemoryError: memory ran out in the block.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise OutOfMemoryError(f"out of memory: {reason.rstrip('.')}. {WAY_OUT}") from error
