"""Numbers of things, in words."""

__all__ = ["counted"]


def counted(number: int, one: str, many: str) -> str:
    """The number with its noun: 1 step, 2,000 steps."""
    return f"{number:,} {one if number == 1 else many}"
