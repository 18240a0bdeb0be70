"""Whether losses agree: the judgement of every check, on numbers alone."""

from collections.abc import Mapping

__all__ = ["FLOAT32", "NARROW", "DiffersError", "bitwise", "close", "falling"]

FLOAT32 = 1e-5
"""Relative difference of losses that add up in float32 in another order. The runner's tests hold the same."""
NARROW = 2**-5
"""Relative difference of the first loss, before any update, in 16 or 8 bits instead of 32: four roundings to eight
bits of significand, with as much again for the three bits of float8 in some layers."""

Losses = Mapping[int, float | None]


class DiffersError(Exception):
    """Losses that do not agree. Says at which step, and how much."""


def close(ours: Losses, theirs: Losses, *, tolerance: float) -> str:
    """Compare the losses of the same steps.

    Returns:
        The largest relative difference, in words.

    Raises:
        DiffersError: a loss is missing or not finite, or differs by more.
    """
    _same_steps(ours, theirs)
    largest, step = max((_difference(ours[step], theirs[step], step), step) for step in theirs)
    if largest > tolerance:
        values = f"{ours[step]!r} instead of {theirs[step]!r}"
        raise DiffersError(f"the loss of step {step} is {values}: {largest:.1e} apart, {tolerance:.0e} allowed")
    return f"losses within {largest:.1e}" if largest else "losses equal bit by bit"


def bitwise(ours: Losses, theirs: Losses) -> str:
    """Compare the losses of the same steps, to the last bit.

    Raises:
        DiffersError: one differs.
    """
    _same_steps(ours, theirs)
    wrong = [step for step in theirs if ours[step] != theirs[step] or ours[step] is None]
    if wrong:
        step = wrong[0]
        raise DiffersError(f"the loss of step {step} is {ours[step]!r} instead of {theirs[step]!r}, to the last bit")
    return "losses equal bit by bit"


def falling(losses: Losses) -> None:
    """Return if every loss is finite and the last one is below the first.

    Raises:
        DiffersError: that is not so.
    """
    values = [value for value in losses.values() if value is not None]
    if len(values) < max(2, len(losses)) or values[-1] >= values[0]:
        raise DiffersError(f"the losses do not fall: {list(losses.values())}")


def _same_steps(ours: Losses, theirs: Losses) -> None:
    if not theirs or ours.keys() != theirs.keys():
        raise DiffersError(f"there are losses of steps {list(ours)} instead of {list(theirs)}")


def _difference(ours: float | None, theirs: float | None, step: int) -> float:
    if ours is None or theirs is None:
        raise DiffersError(f"the loss of step {step} is not finite")
    return abs(ours - theirs) / abs(theirs)
