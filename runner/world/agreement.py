"""What the ranks are about to do together, exchanged before they do it: those that disagree say so by name.

Without it, gloo ends the process with SIGABRT if sizes differ, and NCCL hangs.
"""

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple

from torch import Tensor

from runner.errors import RankError
from runner.protocols import World
from runner.world.nested import map_tensors

__all__ = ["Brought", "agree"]

Shape = tuple[int, ...]
Rule = Callable[[Shape], object]
"""From a shape to what all ranks must have in common of it."""

OWN_MODULES = ("runner.world", "contextlib")
WORKER = "runner.worker"
"""No hook calls it."""
MAX_LINES = 8
"""Of a message: ranks that bring the same share a line."""


class Brought(NamedTuple):
    """One tensor of a rank."""

    path: str
    """In the nested value; empty for a tensor by itself."""
    dtype: str
    shape: Shape
    requires_grad: bool

    def __str__(self) -> str:
        gradient = ", with a gradient" if self.requires_grad else ""
        return f"{self.path or 'a tensor'} {self.dtype}{list(self.shape)}{gradient}"


class Call(NamedTuple):
    """A collective that one rank calls."""

    operation: str
    tensors: tuple[Brought, ...]
    counts: bool
    """False on a rank that brings nothing, since its micro-batch is a filler."""
    site: str
    """Where the call stands: file, line and function."""

    def __str__(self) -> str:
        brought = "; ".join(map(str, self.tensors))
        return f"{self.operation}{f' of {brought}' if brought else ''}, at {self.site}"


class Site(NamedTuple):
    """Where a call stands."""

    place: str
    """File, line and function."""
    is_users: bool
    """Whether that is outside the packages that were passed over."""


def agree(
    world: World, operation: str, values: Any, *, same: Rule, counts: bool = True, with_grad: bool = False
) -> list[Call]:
    """The calls of all ranks, in rank order. Collective.

    Args:
        values: nested, with tensors in it.
        same: what the shapes must have in common.
        counts: whether this rank brings anything.
        with_grad: whether gradients flow back, so that either all ranks need them or none.

    Raises:
        RankError: ranks call different operations, or bring what does not go together.
    """
    tensors: list[Brought] = []

    def note(path: str, tensor: Tensor) -> Tensor:
        dtype = str(tensor.dtype).removeprefix("torch.")
        tensors.append(Brought(path, dtype, tuple(tensor.shape), with_grad and tensor.requires_grad))
        return tensor

    map_tensors(note, values)
    call = Call(operation, tuple(tensors), counts, call_site().place)
    calls: list[Call] = world.gather_objects(call)
    if len({_common(one, same) for one in calls}) > 1:
        raise RankError(f"the ranks disagree about a collective.\n{_listed(calls)}\n{_advice(calls)}")
    return calls


def call_site(*, below: Sequence[str] = OWN_MODULES, through: str = "") -> Site:
    """The nearest caller.

    Args:
        below: packages that are passed over; if all callers up to the worker are in them, the nearest that is not in
            this room or torch is taken.
        through: a module whose function is named as well, if the caller calls one.
    """
    inner = sys._getframe(1)
    nearest: FrameType | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (module := frame.f_globals.get("__name__", "")) != WORKER:
        if not _is_in(module, below):
            called = f", by world.{inner.f_code.co_name}" if inner.f_globals.get("__name__") == through else ""
            return Site(_place(frame) + called, True)
        if nearest is None and not _is_in(module, (*OWN_MODULES, "torch")):
            nearest = frame
        inner, frame = frame, frame.f_back
    return Site(_place(nearest or sys._getframe(1)), False)


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


def _is_in(module: str, modules: Sequence[str]) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in modules)


def _common(call: Call, same: Rule) -> object:
    return call.operation, tuple((one.path, one.dtype, same(one.shape), one.requires_grad) for one in call.tensors)


def _listed(calls: list[Call]) -> str:
    """A line for each different call, with the ranks that make it."""
    ranks: dict[str, list[str]] = {}
    for rank, call in enumerate(calls):
        ranks.setdefault(str(call), []).append(str(rank))
    lines = [f"  rank{'s' if own[1:] else ''} {', '.join(own)}: {call}" for call, own in ranks.items()]
    more = [f"  and {len(lines) - MAX_LINES} more"] if len(lines) > MAX_LINES else []
    return "\n".join(lines[:MAX_LINES] + more)


def _advice(calls: list[Call]) -> str:
    if len({call.operation for call in calls}) > 1:
        return "Every rank must call the same collectives in the same order: look for a condition that differs by rank."
    return (
        "Names, dtypes and gradients must be equal, and shapes as well, except for the first dimension of what is "
        "gathered and the padded one. Use pad before gather if another dimension differs."
    )
