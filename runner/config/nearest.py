"""Suggestions for misspelled names."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches

__all__ = ["did_you_mean", "listed", "nearest_key"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence, after a space, that suggests the nearest known name; empty if none is near."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def listed(names: Iterable[str]) -> str:
    """Sorted names, separated by commas."""
    return ", ".join(sorted(names)) or "none"


def nearest_key(key: str, known: Collection[str]) -> str:
    """Suggest the most similar key within the deepest section of `key` that exists, or at any depth if none does."""
    section = key.rpartition(".")[0]
    while section and section not in known:
        section = section.rpartition(".")[0]
    start = f"{section}." if section else ""
    hint = did_you_mean(
        key[len(start) :],
        (name[len(start) :] for name in known if name.startswith(start)),
    )
    return hint.replace("mean ", f"mean {start}", 1)
