"""The ranks of this machine, under torch's elastic agent."""

import gc
import importlib
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, final

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousHandler

from runner.config.run_dir import RunDir
from runner.launch import rank
from runner.launch.outcome import Outcome
from runner.launch.signals import FOR_TORCH, Signals
from runner.launch.supervision import Supervision
from runner.world.environment import environment

AGENT_LOGGERS = ("torch.distributed.elastic", "torch.multiprocessing")
# The first optimizer step imports torch._dynamo (0.9 CPU s); imported before the fork, every rank has it.
PRELOAD = ("torch._dynamo",)


@final
class Agent(LocalElasticAgent):
    """Torch's agent, with a record of each start of its ranks: the first one and those after a failure."""

    def __init__(self, spec: WorkerSpec, signals: Signals) -> None:
        super().__init__(spec, DefaultLogsSpecs(log_dir=os.devnull), start_method="fork")
        self.started_ns = time.time_ns()
        self.num_starts = 0
        self._signals = signals
        self._forked: dict[int, BaseProcess] = {}

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.started_ns = time.time_ns()
        self.num_starts += 1
        # A restart that another machine's failure caused counts as well.
        self._remaining_restarts = worker_group.spec.max_restarts - (self.num_starts - 1)
        pids: dict[int, int] = super()._start_workers(worker_group)
        children = {child.pid: child for child in multiprocessing.active_children()}
        self._forked = {local_rank: children[pid] for local_rank, pid in pids.items() if pid in children}
        self._signals.watch(pids.values())
        return pids

    def exit_codes(self, result: RunResult) -> dict[int, int]:
        """Exit code by rank, of the ranks that failed, the first one to be noticed leading; -n = killed by signal n.

        Of forked ranks the agent reports only one, though several may have died between two checks.
        """
        codes: dict[int, int] = {number: failure.exitcode for number, failure in result.failures.items()}
        for number, process in self._forked.items():
            if process.exitcode:
                codes.setdefault(number, process.exitcode)
        return codes


def supervise(
    spec_path: Path,
    supervision: Supervision,
    *,
    processes: int,
    fork: bool,
    rendezvous: Callable[[Callable[[], bool]], RendezvousHandler],
    log: str = "agent.log",
    worker: str = "runner.worker",
) -> Outcome:
    """Start the ranks, wait until they are done, and leave none behind. Main thread only: it handles signals.

    Args:
        spec_path: the frozen declaration, in its run's directory.
        supervision: restarts and timeouts.
        processes: how many ranks.
        fork: fork the ranks from this process; otherwise each is a new interpreter.
        rendezvous: makes the rendezvous handler of torch's agent, given a function that says whether a signal has asked
            this launcher to stop.
        log: the file among the run's logs that torch's agent logs to.
        worker: the module whose `main(spec_path)` is a rank.
    """
    run_dir = RunDir(spec_path.parent)
    times = {"interrupt_s": supervision.interrupt_s, "grace_s": supervision.grace_s}
    with Signals(**times) as signals, _agent_log(run_dir, log):
        entrypoint, args = _entrypoint(worker, spec_path, fork=fork)
        handler = rendezvous(lambda: signals.stop_requested)
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
        stop_requested=signals.stop_requested,
        num_restarts=agent.num_starts - 1,
        started_ns=agent.started_ns,
        exit_codes=agent.exit_codes(result) if result is not None else {},
    )


def _run_agent(agent: Agent) -> RunResult | None:
    """None if the agent gave up: the launcher was asked to stop before a (re)start, or another node ended."""
    gc.freeze()  # forked ranks never collect what exists now, so that its pages are never copied
    try:
        # The agent would handle SIGTERM, SIGINT, SIGHUP and SIGQUIT itself; Signals does.
        with environment({"TORCHELASTIC_SIGNALS_TO_HANDLE": FOR_TORCH.name}):
            result: RunResult | None = agent.run()
            return result
    finally:
        gc.unfreeze()


def _entrypoint(worker: str, spec_path: Path, *, fork: bool) -> tuple[str | Callable[..., None], tuple[Any, ...]]:
    """The function that the agent calls in a fork of this process, or the program that it starts, with arguments."""
    if not fork:
        return sys.executable, ("-m", rank.__name__, worker, str(spec_path), str(os.getpid()))
    for module in (*PRELOAD, worker):
        importlib.import_module(module)
    return rank.enter, (worker, str(spec_path), os.getpid())


@contextmanager
def _agent_log(run_dir: RunDir, name: str) -> Iterator[None]:
    """Write the messages of torch's agent to a file: the terminal is for those of the run."""
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
