"""Environment variables of torch and of CUDA's own libraries, set for a while and put back."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

RENDEZVOUS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


# CUDA's matrix library gives the same bits each time only with a workspace of a fixed size, and torch refuses to be
# deterministic without. Of the two sizes that NVIDIA names the first is the faster one: 24 MiB a device.
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED_WORKSPACES = (":4096:8", ":16:8")


def for_determinism(*, deterministic: bool) -> dict[str, str | None]:
    """What a deterministic run needs in the environment; what the user chose there stays, if it serves."""
    if not deterministic or os.environ.get(CUBLAS_WORKSPACE) in FIXED_WORKSPACES:
        return {}
    return {CUBLAS_WORKSPACE: FIXED_WORKSPACES[0]}


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
