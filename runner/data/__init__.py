"""Items in one global order, split among the ranks, and resumed at any position."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.data.megatron.indexed_tokens import IndexedTokens
    from runner.data.megatron.packed_tokens import PackedTokens
    from runner.data.mixture import Mixture
    from runner.data.stream import Stream

__all__ = ["IndexedTokens", "Mixture", "PackedTokens", "Stream"]
HOMES = {
    "IndexedTokens": "runner.data.megatron.indexed_tokens",
    "Mixture": "runner.data.mixture",
    "PackedTokens": "runner.data.megatron.packed_tokens",
    "Stream": "runner.data.stream",
}


def __getattr__(name: str) -> Any:
    """What data hooks use is imported when it is asked for: not every run mixes or streams."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
