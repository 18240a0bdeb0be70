"""The ranks of this machine, under torch's elastic agent."""

import gc
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from signal import SIGTERM
from signal import Signals as Signal
from typing import Any, final

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext, SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousHandler

from runner.config.failure import decode_failure
from runner.config.run_dir import RunDir
from runner.launch import rank
from runner.launch.outcome import Outcome
from runner.launch.signals import FOR_TORCH, Signals
from runner.launch.supervision import Supervision
from runner.launch.watchdog import Watchdog, record_hang
from runner.log import LogFile
from runner.world.activity import ActivityTable, Phase
from runner.world.environment import environment
from runner.world.stop import ENDING_SIGNALS, held_back

AGENT_LOGGERS = ("torch.distributed.elastic", "torch.multiprocessing")


@final
class Agent(LocalElasticAgent):
    """Torch's agent, except that this class decides when ranks have failed, and ends them at once.

    Torch's sends SIGTERM, which asks a rank to save a checkpoint, and waits for 30 s; it reports a rank only by its
    exit code, and does not notice one that left with 0 in the middle of a run.
    """

    def __init__(
        self, spec: WorkerSpec, signals: Signals, table: ActivityTable, *, run_dir: RunDir, timeout_s: float
    ) -> None:
        super().__init__(spec, DefaultLogsSpecs(log_dir=os.devnull), start_method="fork")
        self.start = 0
        """The number of the last start of the ranks."""
        self.num_starts = 0
        self.exit_codes: dict[int, int] = {}
        """By rank, of the ranks that ended before this agent ended the others; -n = killed by signal n."""
        self._signals = signals
        self._table = table
        self._run_dir = run_dir
        self._timeout_s = timeout_s
        self._watchdog = Watchdog(timeout_s)
        self._pids: dict[int, int] = {}

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.start = self._table.begin()
        self._watchdog = Watchdog(self._timeout_s)
        self.num_starts += 1
        # A restart that another machine's failure caused counts as well.
        self._remaining_restarts = worker_group.spec.max_restarts - (self.num_starts - 1)
        with held_back(ENDING_SIGNALS):
            pids: dict[int, int] = super()._start_workers(worker_group)
            self._pids = {worker.global_rank: pids[worker.local_rank] for worker in worker_group.workers}
            self._signals.watch(pids.values())
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        standings = dict(zip(self._pids, self._table.read(), strict=True))
        ended = self._ended()
        unfinished = [number for number, one in standings.items() if one.phase is not Phase.FINISHED]
        self.exit_codes = {number: ended[number] for number in unfinished if number in ended}
        hang = None if self.exit_codes else self._watchdog.poll(standings)
        if hang is not None:
            record_hang(self._run_dir, hang, self._pids, start=self.start)
        if self.exit_codes or hang is not None:
            self._signals.kill()
            return RunResult(state=WorkerState.FAILED)
        if unfinished:
            return RunResult(state=WorkerState.HEALTHY)
        # A finished rank has nothing left to do: how its process ends, now or a moment later, does not matter.
        result: RunResult | None = None if any(ended.values()) else super()._monitor_workers(worker_group)
        if result is not None and not result.is_failed():
            return result
        self._signals.kill()
        return RunResult(state=WorkerState.SUCCEEDED, return_values=dict.fromkeys(self._pids))

    def _ended(self) -> dict[int, int]:
        """The exit codes of the ranks that have ended; -n = killed by signal n.

        Asked of torch's own handles, which remember the answer: a process can be waited for once, and macOS has no
        waitid that leaves it to be waited for again before Python 3.13.
        """
        context = self._pcontext
        if isinstance(context, MultiprocessContext):
            processes = context._pc.processes if context._pc is not None else []
            codes = {process.pid: process.exitcode for process in processes}
        elif isinstance(context, SubprocessContext):
            codes = {one.proc.pid: one.proc.poll() for one in context.subprocess_handlers.values()}
        else:
            codes = {}
        return {number: code for number, pid in self._pids.items() if (code := codes.get(pid)) is not None}

    def _shutdown(self, death_sig: Signal = SIGTERM, timeout: int = 30) -> None:
        self._signals.kill()
        super()._shutdown(death_sig, timeout)


def supervise(
    spec_path: Path,
    supervision: Supervision,
    *,
    processes: int,
    timeout_s: float,
    fork: bool,
    preload: Sequence[str] = (),
    rendezvous: Callable[[Callable[[], bool]], RendezvousHandler],
    log: str = "agent.log",
    worker: str = "runner.worker",
) -> Outcome:
    """Start the ranks, wait until they are done, and leave none behind. Main thread only: it handles signals.

    Args:
        spec_path: the frozen declaration, in its run's directory.
        supervision: restarts and timeouts.
        processes: how many ranks.
        timeout_s: how long a rank may make no progress.
        fork: fork the ranks from this process; otherwise each is a new interpreter.
        preload: modules that every rank needs, imported once before the fork.
        rendezvous: makes the rendezvous handler of torch's agent, given a function that says whether a signal has asked
            this launcher to stop.
        log: the file among the run's logs that torch's agent logs to.
        worker: the module whose `work(spec_path, stopping, activity)` is a rank.
    """
    run_dir = RunDir(spec_path.parent)
    times = {"interrupt_s": supervision.interrupt_s, "grace_s": supervision.grace_s}
    with closing(ActivityTable(processes)) as table, Signals(**times) as signals, _agent_log(run_dir, log):
        entrypoint, args = _entrypoint(worker, spec_path, table, fork=fork, preload=preload)
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
        agent = Agent(spec, signals, table, run_dir=run_dir, timeout_s=timeout_s)
        result = _run_agent(agent)
        handler.shutdown()
        unwritten = [decode_failure(report) for report in table.reports()]
    return Outcome(
        succeeded=result is not None and not result.is_failed(),
        stop_requested=signals.stop_requested,
        num_restarts=agent.num_starts - 1,
        start=agent.start,
        exit_codes=agent.exit_codes,
        unwritten=unwritten,
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


def _entrypoint(
    worker: str, spec_path: Path, table: ActivityTable, *, fork: bool, preload: Sequence[str]
) -> tuple[str | Callable[..., None], tuple[Any, ...]]:
    """The function that the agent calls in a fork of this process, or the program that it starts, with arguments."""
    if not fork:
        return sys.executable, ("-m", rank.__name__, worker, str(spec_path), str(os.getpid()), table.path)
    for module in (*preload, worker):
        importlib.import_module(module)
    return rank.enter, (worker, str(spec_path), os.getpid(), table.path)


@contextmanager
def _agent_log(run_dir: RunDir, name: str) -> Iterator[None]:
    """Write the messages of torch's agent to a file: the terminal is for those of the run."""
    run_dir.logs.mkdir(exist_ok=True)
    handler = LogFile(run_dir.logs / name, delay=True)
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
