"""run.debug=true: every collective of a rank is compared with those of the others before it runs.

Torch has a wrapper of process groups for it (TORCH_DISTRIBUTED_DEBUG=DETAIL), but that knows no call sites, compares
each group by itself, and DDP on gloo ends in it with SIGSEGV (torch 2.13, in its logger). Here, a dispatch mode sees
every collective, those of DDP and FSDP included, as torch's CommDebugMode does. The ranks exchange what they call
through the store, where a rank that waits also sees what the others wait for.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, final

import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # public, missing in __all__
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runner.errors import RankError
from runner.protocols import World
from runner.world.agreement import call_site

__all__ = ["compared_collectives"]

FIRST_PAUSE_S, LAST_PAUSE_S = 0.0002, 0.02
"""Between two looks for the others' calls. The store's own `wait` warns on stderr whenever its time is over."""
LOOK_S = 1.0
"""How often a rank that waits looks for ranks that wait for it."""
NAMESPACES = ("c10d", "_c10d_functional")
UNPAIRED = ("send", "recv", "isend", "irecv", "batch_p2p", "wait_tensor", "monitored_barrier", "check_for_nan")
"""Operations that not all ranks of a group call, or that do not communicate."""
UNEVEN = ("alltoall", "all_to_all")
"""Operations whose shapes may differ."""
BELOW = ("torch", "runner", "deepspeed", "contextlib", "typing_extensions")
"""Packages in which no hook calls a collective."""
FACE = "runner.world.collectives"


class Call(NamedTuple):
    """A collective that a rank calls."""

    key: str
    """Which group, and the how many-th of its collectives."""
    ranks: list[int]
    """Of the group."""
    what: str
    """Operation, shapes and dtypes, and the root where there is one."""
    site: str
    is_users: bool
    """Whether a hook or a callback calls it, and not the engine."""

    def __str__(self) -> str:
        return f"{self.what}, at {self.site}"


@contextmanager
def compared_collectives(world: World) -> Iterator[None]:
    """In the block, each collective of this thread waits until all ranks of its group call the same.

    Raises:
        RankError: they do not. All of them raise, and name what each rank brings and from where.
    """
    store = PrefixStore("runner/debug", dist.distributed_c10d._get_default_store())
    with _Compared(_Board(store, world.rank)):
        yield


@final
class _Compared(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not say what it returns
    """Sees every operation of this thread."""

    def __init__(self, board: "_Board") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._board = board
        self._counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if any(one.__name__ == "DTensor" for one in types):
            return NotImplemented  # it runs collectives on plain tensors, which are seen then
        if func.namespace in NAMESPACES and not any(word in func.__name__ for word in UNPAIRED):
            self._compare(func, args)
        return func(*args, **(kwargs or {}))

    def _compare(self, func: Any, args: Sequence[Any]) -> None:
        named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
        group = _group_of(named)
        ranks = dist.get_process_group_ranks(group)
        if len(ranks) == 1:
            return
        members = f"{group.group_name}/{','.join(map(str, ranks))}"
        self._counts[members] += 1
        site = call_site(below=BELOW, through=FACE)
        what = _described(func, args, named)
        self._board.agree(Call(f"{members}/{self._counts[members]}", ranks, what, site.place, site.is_users))


@final
class _Board:
    """Where each rank writes what it calls, for the others to read."""

    def __init__(self, store: Store, rank: int) -> None:
        self._store = store
        self._rank = rank
        self._done: dict[str, list[str]] = {}

    def agree(self, call: Call) -> None:
        """Return once all ranks of the group call the same.

        Raises:
            RankError: they do not, or wait for each other in different groups.
        """
        self._store.set(f"{call.key}/{self._rank}", json.dumps(call))
        self._store.set(f"now/{self._rank}", json.dumps(call))
        self._wait(call)
        calls = {rank: self._read(f"{call.key}/{rank}") for rank in call.ranks}
        if len({(one.what, one.is_users) for one in calls.values() if one is not None}) > 1:
            raise _disagreement(calls)
        self._store.set(f"now/{self._rank}", "")
        self._forget(call)

    def _wait(self, call: Call) -> None:
        before: dict[int, Call | None] = {}
        keys = [f"{call.key}/{rank}" for rank in call.ranks]
        pause_s, looked = FIRST_PAUSE_S, time.monotonic()
        while not self._store.check(keys):
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)
            if time.monotonic() - looked < LOOK_S:
                continue
            circle = self._circle(call, {})
            if circle and circle == before:  # seen twice: not just on their way
                raise _disagreement({self._rank: call, **circle})
            before, looked = circle, time.monotonic()

    def _circle(self, call: Call, seen: dict[int, Call | None]) -> dict[int, Call | None]:
        """What other ranks call that wait for this one, if this one waits for them; empty if none does."""
        for rank in self._missing(call):
            if rank == self._rank:
                return seen
            now = self._read(f"now/{rank}")
            if now is None or rank in seen:
                continue
            if found := self._circle(now, {**seen, rank: now}):
                return found
        return {}

    def _missing(self, call: Call) -> list[int]:
        return [rank for rank in call.ranks if not self._store.check([f"{call.key}/{rank}"])]

    def _read(self, key: str) -> Call | None:
        text = self._store.get(key).decode() if self._store.check([key]) else ""
        return Call(*json.loads(text)) if text else None

    def _forget(self, call: Call) -> None:
        """Delete what all ranks have read: before this call of a group, they had all read that of the one before."""
        members = call.key.rpartition("/")[0]
        done = self._done.setdefault(members, [])
        done.append(f"{call.key}/{self._rank}")
        if len(done) > 2:
            self._store.delete_key(done.pop(0))


def _group_of(named: Mapping[str, Any]) -> dist.ProcessGroup:
    if "process_group" in named:
        return dist.ProcessGroup.unbox(named["process_group"])
    name = next(value for key, value in named.items() if key.startswith("group"))
    found: dist.ProcessGroup = dist.distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined]
    return found


def _described(func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> str:
    """Operation, tensors that this rank brings, and the root."""
    name = func.__name__.split(".")[0].strip("_")
    last = [key for key in named if key.startswith(("input", "tensor", "self"))]
    brought = named["output_tensors"] if name == "scatter" else named[last[-1]] if last else args[0]
    tensors = [one for one in tree_leaves(brought) if isinstance(one, Tensor)]
    uneven = any(word in name for word in UNEVEN)
    shapes = "; ".join(str(one.dtype).removeprefix("torch.") + ("" if uneven else str([*one.shape])) for one in tensors)
    root = f" of rank {named['root_rank']} of the group" if "root_rank" in named else ""
    return name if name == "barrier" else f"{name} of {shapes}{root}"


def _disagreement(calls: Mapping[int, Call | None]) -> RankError:
    lines = [f"  rank {rank}: {call}" for rank, call in sorted(calls.items()) if call is not None]
    rule = "Every rank must call the same collectives, in the same order and with equal shapes and dtypes."
    return RankError("\n".join(["the ranks disagree about a collective.", *lines, rule]))
