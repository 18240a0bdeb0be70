"""The ranks of this machine, under torch's elastic agent."""

import gc
import importlib
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, final

import torch
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousHandler

from runner.config.run_dir import RunDir
from runner.launch import rank
from runner.launch.environment import environment
from runner.launch.signals import FOR_TORCH, Signals
from runner.launch.supervision import Supervision

AGENT_LOGGERS = ("torch.distributed.elastic", "torch.multiprocessing")
# The first optimizer step imports torch._dynamo, always (0.9 CPU s); a forked rank finds it there.
PRELOAD = ("torch._dynamo",)


@final
class Agent(LocalElasticAgent):
    """Torch's agent, which tells us of each start: of the whole group, at first and after a failure."""

    def __init__(self, spec: WorkerSpec, signals: Signals) -> None:
        super().__init__(spec, DefaultLogsSpecs(log_dir=os.devnull), start_method="fork")
        self.started_ns = time.time_ns()
        self.num_starts = 0
        self._signals = signals
        self._forked: dict[int, BaseProcess] = {}

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.started_ns = time.time_ns()
        self.num_starts += 1
        # A group that another machine's failure restarted has used a restart up as well.
        self._remaining_restarts = worker_group.spec.max_restarts - (self.num_starts - 1)
        pids: dict[int, int] = super()._start_workers(worker_group)
        children = {child.pid: child for child in multiprocessing.active_children()}
        self._forked = {local_rank: children[pid] for local_rank, pid in pids.items() if pid in children}
        self._signals.watch(pids.values())
        return pids

    def exit_codes(self, result: RunResult) -> dict[int, int]:
        """Of each rank that did not end well, the one seen first leading; minus the signal that killed it.

        Of forked ranks the agent reports only one, though several may have died between two looks at them.
        """
        codes: dict[int, int] = {number: failure.exitcode for number, failure in result.failures.items()}
        for number, process in self._forked.items():
            if process.exitcode:
                codes.setdefault(number, process.exitcode)
        return codes


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the ranks of this machine ended."""

    succeeded: bool
    """All of them returned."""
    asked: bool
    """The launcher was asked to stop by a signal."""
    num_restarts: int
    started_ns: int
    """When they were started for the last time."""
    exit_codes: Mapping[int, int]
    """Of each rank that did not end well, the one seen first leading; minus the signal that killed it."""


def supervise(
    spec_path: Path,
    supervision: Supervision,
    *,
    processes: int,
    fork: bool,
    meet: Callable[[Callable[[], bool]], RendezvousHandler],
    log: str = "agent.log",
    worker: str = "runner.worker",
) -> Outcome:
    """Start the ranks, wait until they are done, and leave none behind. Main thread only: it takes over signals.

    Args:
        spec_path: the frozen declaration, in its run's directory.
        supervision: restarts and times.
        processes: how many ranks.
        fork: they may be forked from this process, if that is safe.
        meet: makes what tells torch's agent where the ranks meet, from a function that says whether all is over.
        log: the file in the run's directory that takes what torch's agent says of its work.
        worker: the module whose `main(spec_path)` is a rank.
    """
    run_dir = RunDir(spec_path.parent)
    times = {"interrupt_s": supervision.interrupt_s, "grace_s": supervision.grace_s}
    with Signals(**times) as signals, _agent_log(run_dir, log):
        entrypoint, args = _entrypoint(worker, spec_path, fork=fork and _is_clean())
        handler = meet(lambda: signals.asked)
        spec = WorkerSpec(
            role="rank",
            local_world_size=processes,
            rdzv_handler=handler,
            entrypoint=entrypoint,
            args=args,
            max_restarts=supervision.max_restarts,
            monitor_interval=supervision.monitor_interval_s,
        )
        agent = Agent(spec, signals)
        result = _run_agent(agent)
        handler.shutdown()
    return Outcome(
        succeeded=result is not None and not result.is_failed(),
        asked=signals.asked,
        num_restarts=agent.num_starts - 1,
        started_ns=agent.started_ns,
        exit_codes=agent.exit_codes(result) if result is not None else {},
    )


def _run_agent(agent: Agent) -> RunResult | None:
    """None if the agent gave up: the launcher was asked to stop before a (re)start, or another machine ended."""
    gc.freeze()  # what is there now is never collected in a rank, and so its pages are never copied
    try:
        # The agent would take SIGTERM, SIGINT, SIGHUP and SIGQUIT over; they are ours.
        with environment({"TORCHELASTIC_SIGNALS_TO_HANDLE": FOR_TORCH.name}):
            result: RunResult | None = agent.run()
            return result
    finally:
        gc.unfreeze()


def _entrypoint(worker: str, spec_path: Path, *, fork: bool) -> tuple[str | Callable[..., None], tuple[str, ...]]:
    """What the agent calls in a fork of this process, or the interpreter that it starts with these arguments."""
    if not fork:
        return sys.executable, ("-m", rank.__name__, worker, str(spec_path))
    for module in (*PRELOAD, worker):
        importlib.import_module(module)
    return rank.enter, (worker, str(spec_path))


def _is_clean() -> bool:
    """Whether this process may be forked: on Linux, alone in its threads (no notebook is), and without a device."""
    holds_device = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return sys.platform == "linux" and threading.active_count() == 1 and not holds_device


@contextmanager
def _agent_log(run_dir: RunDir, name: str) -> Iterator[None]:
    """Send what torch's agent says of its work to a file: the terminal belongs to the run."""
    run_dir.logs.mkdir(exist_ok=True)
    handler = logging.FileHandler(run_dir.logs / name, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in AGENT_LOGGERS]
    propagated = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, before in zip(loggers, propagated, strict=True):
            logger.removeHandler(handler)
            logger.propagate = before
        handler.close()
