"""The identity of a rank: its numbers among all ranks and on its machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from runner.errors import RankError


@final
@dataclass(frozen=True, kw_only=True)
class RankIdentity:
    """The rank of a process, and the number of ranks."""

    rank: int
    """Among all ranks, from 0."""
    local_rank: int
    """Among the ranks of this machine, from 0."""
    world_size: int
    """The number of all ranks."""
    local_world_size: int
    """The number of ranks on this machine."""

    def __post_init__(self) -> None:
        for name, number, size_name, size in (
            ("rank", self.rank, "world_size", self.world_size),
            ("local_rank", self.local_rank, "local_world_size", self.local_world_size),
            ("local_world_size", self.local_world_size - 1, "world_size", self.world_size),
        ):
            if not 0 <= number < size:
                raise RankError(f"{self} is not a valid rank: {name} does not fit {size_name}.")


def whole_numbers(environment: Mapping[str, str], names: Sequence[str], *, launcher: str) -> list[int]:
    """Read these variables as whole numbers.

    Raises:
        RankError: one is missing or not a whole number.
    """
    missing = [name for name in names if name not in environment]
    if missing:
        present = ", ".join(name for name in names if name in environment)
        raise RankError(
            f"{launcher} sets {present} and {', '.join(missing)}, but {', '.join(missing)} is missing. Set it as"
            f" {launcher} does, or unset the others."
        )
    for name in names:
        if not environment[name].isdecimal():
            raise RankError(f"{name}={environment[name]!r} must be a whole number, as {launcher} sets it.")
    return [int(environment[name]) for name in names]
