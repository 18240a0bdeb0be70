"""Torch's own environment variables, set for a while and put back."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

RENDEZVOUS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """These values in the block, None = not set; afterwards what was there before."""
    before = {name: os.environ.get(name) for name in changes}
    _apply(changes)
    try:
        yield
    finally:
        _apply(before)


def _apply(changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
