"""Environment variables of torch and of CUDA's libraries, set for a block of code and restored."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# cuBLAS is deterministic only with a workspace of a fixed size, and torch refuses to be deterministic without one. Of
# the two sizes that NVIDIA documents the first is the faster one: 24 MiB a device.
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED_WORKSPACES = (":4096:8", ":16:8")


def for_determinism(*, deterministic: bool) -> dict[str, str | None]:
    """What a deterministic run needs in the environment. A suitable value that the user has set is kept."""
    if not deterministic or os.environ.get(CUBLAS_WORKSPACE) in FIXED_WORKSPACES:
        return {}
    return {CUBLAS_WORKSPACE: FIXED_WORKSPACES[0]}


@contextmanager
def environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set these variables in the block (None = unset), and restore them afterwards."""
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
