"""One attempt on several machines, from the launcher on one of them."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from runner.config.provenance import describe_code
from runner.config.run_dir import RunDir
from runner.errors import RunnerError
from runner.launch.agent import supervise
from runner.launch.attached import AttachedJob
from runner.launch.failures import Cause, CauseKind, find_cause
from runner.launch.node_group import EndReason, NodeEnded
from runner.launch.nodes.coordinator import Coordinator
from runner.launch.nodes.hosts import interface_to
from runner.launch.outcome import Outcome, check_done, failed, interrupted, stopped_by_signal
from runner.launch.rendezvous import Rendezvous
from runner.launch.supervision import Supervision
from runner.world.environment import GLOO_INTERFACE, NCCL_INTERFACE, environment, for_determinism
from runner.world.handover import hand_over

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec

OWN_KEYS = ("node_rank", "interface", "hostfile", "secret_file")
"""Keys of `launch` that may differ from machine to machine."""


@final
@dataclass(frozen=True, kw_only=True)
class NodesLaunch:
    """One attempt, after the launchers of all machines have met."""

    spec: "RunSpec"
    coordinator: Coordinator
    supervision: Supervision
    join_s: float
    """Seconds to wait for the other machines."""
    interface: str | None
    """Network interface that ranks talk over; None = the one that leads to node 0."""

    def begin(self, freeze: Callable[[], Path]) -> Path:
        """Node 0 freezes it, in a directory that all machines see."""
        return self.coordinator.share_spec(freeze, timeout_s=self.join_s)

    def start(self, spec_path: Path) -> AttachedJob:
        """A job of which this machine's ranks run while it is waited for."""
        return AttachedJob(run=partial(self._run, spec_path))

    def _run(self, spec_path: Path) -> None:
        coordinator, processes = self.coordinator, self.spec.hardware.processes
        first = coordinator.node_rank * processes
        where = "" if coordinator.node_rank == 0 else "; node 0 shows the progress of the run"
        report(
            f"node {coordinator.node_rank} of {coordinator.num_nodes}: ranks {first} to {first + processes - 1}{where}"
        )
        rendezvous: list[Rendezvous] = []

        def make_rendezvous(stop_requested: Callable[[], bool]) -> Rendezvous:
            rendezvous.append(Rendezvous(coordinator, stop_requested=stop_requested, join_s=self.join_s))
            return rendezvous[0]

        variables = for_determinism(deterministic=self.spec.run.deterministic) | self._interface_variables()
        with hand_over(self.spec.secrets) as place, environment(variables | place):
            outcome = supervise(
                spec_path,
                self.supervision,
                processes=processes,
                timeout_s=self.spec.hardware.timeout_s,
                fork=False,  # threads carry connections here, and node 0's TCPStore has one that Python does not see
                rendezvous=make_rendezvous,
                log="agent.log" if coordinator.node_rank == 0 else f"agent_{coordinator.node_rank}.log",
            )
        self._raise_unless_done(RunDir(spec_path.parent), outcome, rendezvous[0].ended)

    def _interface_variables(self) -> dict[str, str | None]:
        """The network interface, for gloo and NCCL. What the user has set in the environment is kept."""
        if self.interface is not None:
            return {GLOO_INTERFACE: self.interface, NCCL_INTERFACE: self.interface}
        if GLOO_INTERFACE in os.environ:
            return {}
        # Gloo would take the address of this machine's name, which is 127.0.1.1 on Debian; NCCL chooses by itself.
        return {GLOO_INTERFACE: interface_to(self.coordinator.node_0_address())}

    def _raise_unless_done(self, run_dir: RunDir, outcome: Outcome, ended: NodeEnded | None) -> None:
        """Return if the run is done; otherwise tell the other nodes, and raise the error it ended with."""
        coordinator = self.coordinator
        if outcome.succeeded:
            return check_done(run_dir)
        if outcome.stop_requested:
            coordinator.announce_end(EndReason.INTERRUPTED, f"node {coordinator.node_rank} was asked to stop.")
            coordinator.report_cause(asdict(Cause(text="", kind=CauseKind.STOPPED)))
            raise stopped_by_signal(run_dir, outcome)
        if ended is not None:
            was_stopped = ended.reason is EndReason.INTERRUPTED
            heard = Cause(text=ended.message, kind=CauseKind.STOPPED if was_stopped else CauseKind.UNKNOWN)
            coordinator.report_cause(None)  # this node has seen no cause of its own
            raise self._error(run_dir, outcome, heard, is_own=False)
        coordinator.announce_end(EndReason.FAILED, f"the ranks of node {coordinator.node_rank} failed.")
        own = find_cause(run_dir, start=outcome.start, exit_codes=outcome.exit_codes, unwritten=outcome.unwritten)
        coordinator.report_cause(asdict(own))
        raise self._error(run_dir, outcome, own, is_own=True)

    def _error(self, run_dir: RunDir, outcome: Outcome, known: Cause, *, is_own: bool) -> RunnerError:
        """The error for the first kind of cause that the nodes report; `known` if they report none."""
        try:
            causes, unresponsive = self.coordinator.collect_causes()
        except NodeEnded as lost:
            causes = [asdict(replace(known, text=f"{lost.message}\n{known.text}"))] if is_own else []
            unresponsive = []
        first = min((Cause(**cause) for cause in causes), key=lambda cause: cause.kind, default=known)
        if first.kind == CauseKind.STOPPED:
            return interrupted(run_dir, "Another node was asked to stop.")
        text = first.after(outcome.num_restarts)
        if unresponsive and first.kind != CauseKind.DIED:
            text += f"\nNo report from {', '.join(unresponsive)}: look there first."
        return failed(run_dir, text, error=first.error)


def declaration_of(spec: "RunSpec") -> Mapping[str, Any]:
    """What must be the same on every machine: the configuration, and the versions of the code."""
    launch = {key: value for key, value in spec.config["launch"].items() if key not in OWN_KEYS}
    return {**spec.config, "launch": launch, **describe_code(spec)}


def report(line: str) -> None:
    """Print a line about the launch."""
    print(line, file=sys.stderr, flush=True)
