"""Runs the checks, and says as it goes what works, what does not, and what this machine cannot run."""

import gc
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from runner.errors import Fault, RunnerError, SpecError
from runner.runs.interrupts import interrupted_by_signals
from runner.selftest.bench import Bench
from runner.selftest.checks import GROUPS, Check, Missing, checks_of
from runner.selftest.child import RunError
from runner.selftest.places import Place, find_places
from runner.selftest.verdict import DiffersError
from runner.world.environment import environment

__all__ = ["selftest"]

WORKS, FAILS, MISSING = "works", "FAILS", "missing"
LOG_LINES = 40
PLACES = ("XDG_STATE_HOME", "TORCHINDUCTOR_CACHE_DIR")
"""Variables that say where the command remembers what this account has launched, and where torch keeps its cache."""
PRELOAD = ("runner.worker", "runner.launch.multi_process", "runner.composition.compose")
"""What every run imports (torch, its elastic agent, Hydra): once here, for all runs that can be forked."""


def selftest(groups: Sequence[str], *, timeout_s: float) -> bool:
    """Check groups of options, all of them if none is named. Leaves nothing behind.

    Args:
        timeout_s: how long each run may take.

    Returns:
        Whether everything works that this machine can run.

    Raises:
        SpecError: there is no such group.
    """
    unknown = [group for group in groups if group not in GROUPS]
    if unknown:
        rule = f"there is no group {unknown[0]!r}. There are: {', '.join(GROUPS)}."
        raise SpecError(Fault(key="GROUP", message=rule))
    counts: Counter[str] = Counter()
    with (
        interrupted_by_signals(),
        tempfile.TemporaryDirectory(prefix="runner-selftest-", ignore_cleanup_errors=True) as directory,
        environment(dict.fromkeys(PLACES, directory)),
    ):
        for module in PRELOAD:
            import_module(module)
        gc.freeze()  # forks never collect what exists now, so that its pages are never copied
        bench = Bench(Path(directory), timeout_s=timeout_s)
        for one in _all_checks(groups or list(GROUPS), find_places()):
            verdict, text = _judge(one, bench)
            counts[verdict] += 1
            print(f"{one.group:<12} {one.name:<46} {verdict:<8} {text}", flush=True)
    print(f"{counts[WORKS]} work, {counts[FAILS]} fail, {counts[MISSING]} cannot run on this machine")
    return not counts[FAILS]


def _all_checks(groups: Sequence[str], places: Sequence[Place]) -> Iterator[Check | Missing]:
    """Those of every place; what is missing in one is missing in all."""
    told = set[tuple[str, str]]()
    for place in places:
        for group in groups:
            for one in checks_of(group, place):
                if isinstance(one, Check) or one[:2] not in told:
                    told.add(one[:2])
                    yield one


def _judge(one: Check | Missing, bench: Bench) -> tuple[str, str]:
    if isinstance(one, Missing):
        return MISSING, one.reason
    try:
        return WORKS, one.run(bench)
    except (DiffersError, RunnerError) as differs:
        return FAILS, str(differs)
    except RunError as failed:
        _show(failed.log)
        return FAILS, str(failed)


def _show(log: Path) -> None:
    """The end of what a run printed."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    for line in lines[-LOG_LINES:]:
        print(f"  | {line}", file=sys.stderr, flush=True)
