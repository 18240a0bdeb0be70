"""Batches compared, and how they are loaded."""

from typing import Any

import torch
from torch.utils.data import default_collate

from runner.protocols import LoaderOptions


def options(**keys: Any) -> LoaderOptions:
    """Of a loader on the CPU, in the rank itself."""
    defaults = {"collate": default_collate, "device": torch.device("cpu"), "workers": 0, "prefetch": 2}
    return LoaderOptions(**({**defaults, "pin_memory": False} | keys))


def assert_same(one: Any, other: Any) -> None:
    """Two batches have the same structure, types and values, to the bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other
