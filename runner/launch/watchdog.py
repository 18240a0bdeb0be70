"""Finds the rank that the others wait for in vain."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from runner.config.failure import Failure
from runner.config.run_dir import RunDir
from runner.errors import HangError
from runner.launch.failures import report
from runner.launch.stacks import collect_stacks, innermost_file, is_stopped
from runner.world.activity import Phase, Standing

__all__ = ["Hang", "Watchdog", "record_hang"]

TIMED = (Phase.DATA, Phase.STEP, Phase.EVALUATION, Phase.WAITING)
"""Phases that end within a limited time. Hooks, callbacks and checkpoints may take as long as nobody waits for them."""
ALONE = (Phase.STARTING, Phase.BUILDING, Phase.DATA, Phase.CALLBACK, Phase.SAVING)
"""Phases in which a rank does not communicate: one that stays in them is not waiting for another."""
LONGEST_POLL_S = 1.0
"""More time between two polls does not count: the launcher itself may have been stopped."""


@final
@dataclass(frozen=True, kw_only=True)
class Hang:
    """Ranks that make no progress, as their launcher sees it."""

    timeout_s: float
    standings: Mapping[int, Standing]
    """Where every rank of this machine stands, by rank."""


@final
class Watchdog:
    """Follows what ranks do, from poll to poll."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._last: Mapping[int, Standing] = {}
        self._still_s: dict[int, float] = {}
        self._polled = time.monotonic()

    def poll(self, standings: Mapping[int, Standing]) -> Hang | None:
        """Take note of where the ranks stand; a hang if one has made no progress for the timeout."""
        now = time.monotonic()
        passed, self._polled = min(now - self._polled, LONGEST_POLL_S), now
        for rank, standing in standings.items():
            same = standing == self._last.get(rank)
            self._still_s[rank] = self._still_s.get(rank, 0.0) + passed if same else 0.0
        self._last = dict(standings)
        timed = [self._still_s[rank] for rank, one in standings.items() if one.phase in TIMED]
        if max(timed, default=0.0) < self._timeout_s:
            return None
        return Hang(timeout_s=self._timeout_s, standings=self._last)


def record_hang(run_dir: RunDir, hang: Hang, pids: Mapping[int, int], *, start: int) -> None:
    """Write the stacks of all ranks to their logs, and a failure report for the rank that the others wait for.

    Args:
        run_dir: the run's directory.
        hang: what the watchdog found.
        pids: the process of each rank; all of them still run.
        start: the number of this start of the ranks.
    """
    stopped = [rank for rank, pid in pids.items() if is_stopped(pid)]
    stacks = collect_stacks(run_dir, pids)
    silent = stopped or _find_silent(hang.standings, stacks)
    for rank in silent or hang.standings:
        standing = hang.standings[rank]
        report(
            run_dir,
            Failure(
                rank=rank,
                time_ns=time.time_ns(),
                monotonic_ns=time.monotonic_ns(),
                start=start,
                step=standing.step,
                error=HangError.__name__,
                message=_message(run_dir, hang, rank, silent=silent, stopped=stopped),
                traceback=stacks.get(rank) or "It wrote no stack: the system does not let it run.",
            ),
        )


def _find_silent(standings: Mapping[int, Standing], stacks: Mapping[int, str]) -> Sequence[int]:
    """The ranks that the others wait for: those that are busy alone, or else those that are behind.

    Of ranks in the same step, those that are not in a call of torch's, where they would wait for others. None if all
    wait: for a rank of another machine, or each in another collective.
    """
    busy = [rank for rank, one in standings.items() if one.phase not in (Phase.WAITING, Phase.FINISHED)]
    alone = [rank for rank in busy if standings[rank].phase in ALONE]
    first = min((standings[rank].step for rank in busy), default=0)
    behind = alone or [rank for rank in busy if standings[rank].step == first]
    return [rank for rank in behind if "/torch/" not in innermost_file(stacks.get(rank, ""))] or behind


def _message(run_dir: RunDir, hang: Hang, rank: int, *, silent: Sequence[int], stopped: Sequence[int]) -> str:
    others = [f"rank {other}: {hang.standings[other]}" for other in hang.standings if other != rank]
    what = f"no progress for hardware.timeout_s={hang.timeout_s:g} s. It is {hang.standings[rank]}"
    if others:
        what += f"; {', '.join(others)}"
    if rank in stopped:
        what += ". Its process was stopped, by SIGSTOP or a debugger"
    if not silent:
        what += ". Every rank of this machine waits: for one of another machine, or in a different collective"
    log = run_dir.rank_log(rank)
    return (
        f"{what}. All stacks are in {run_dir.logs}, that of this rank at the end of {log.name}. If it works and only "
        "takes longer than that, raise hardware.timeout_s."
    )
