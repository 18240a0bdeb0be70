"""Suggestions for misspelled names."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["did_you_mean", "listed"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence, after a space, that suggests the nearest known name; empty if none is near."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def listed(names: Iterable[str]) -> str:
    """Sorted names, separated by commas."""
    return ", ".join(sorted(names)) or "none"
