"""The name that somebody probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["did_you_mean", "listed"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with a leading blank that proposes the nearest known name, or nothing if none is near."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def listed(names: Iterable[str]) -> str:
    """Names in a sentence."""
    return ", ".join(sorted(names)) or "none"
