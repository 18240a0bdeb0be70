"""One attempt on several machines, from one of them: its ranks, and the word of the others."""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from runner.config.provenance import describe_code
from runner.config.run_dir import RunDir
from runner.errors import RunnerError
from runner.launch.agent import Outcome, supervise
from runner.launch.ending import failed, interrupted, settle, stopped
from runner.launch.environment import environment, for_determinism
from runner.launch.failures import Cause, find_cause
from runner.launch.hosts import Endpoint, interface_towards
from runner.launch.join import meet
from runner.launch.meeting import FAILED, INTERRUPTED, Meeting, OtherEnded
from runner.launch.rendezvous import Rendezvous

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec
    from runner.launch.nodes import Nodes

OWN = ("node_rank", "interface", "hostfile")
"""Keys of `launch` that may differ from machine to machine."""
ASKED_NS = -1
"""Before every failure: what breaks while the ranks are stopped is no cause."""
GLOO_INTERFACE, NCCL_INTERFACE = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


@contextmanager
def together(part: "Nodes", spec: "RunSpec", place: Endpoint, *, node_rank: int | None) -> Iterator["Together"]:
    """Meet the launchers of the other machines, and part when the block ends.

    Args:
        part: the keys of the option.
        spec: what is to be launched.
        place: where node 0 waits.
        node_rank: this machine's number; None = one that is free, but not 0.

    Raises:
        SpecError: the machines were told different things.
        LaunchError: one of them did not come, or ended.
        Interrupted: one of them was asked to stop.
    """
    others = part.nodes - 1
    if node_rank == 0:
        _say(f"node 0 of {part.nodes} ({socket.gethostname()}) waits for {others} more at {place}")
    times = {"join_s": part.join_s, "lost_s": part.lost_s}
    with meet(place, node_rank=node_rank, nodes=part.nodes, **times) as meeting:
        if meeting.node:
            _say(f"node {meeting.node} of {part.nodes} ({socket.gethostname()}) met node 0 at {place}")
        meeting.agree(_told(spec), join_s=part.join_s)
        yield Together(part=part, spec=spec, meeting=meeting)


@final
@dataclass(frozen=True, kw_only=True)
class Together:
    """One attempt, as the launcher of one machine sees it."""

    part: "Nodes"
    spec: "RunSpec"
    meeting: Meeting

    def begin(self, freeze: Callable[[], Path]) -> Path:
        """Node 0 freezes it, in a directory that all machines see."""
        return self.meeting.share(freeze, within_s=self.part.join_s)

    def run(self, spec_path: Path, *, worker: str = "runner.worker") -> None:
        """Start this machine's ranks, wait, and return when all are done. Main thread only: it takes over signals.

        Raises:
            RunFailed: a rank failed, or a machine, and no restart is left.
            LaunchError: a machine did not come to a restart.
            Interrupted: a signal ended the run, here or elsewhere.
        """
        meeting, processes = self.meeting, self.spec.hardware.processes
        first = meeting.node * processes
        where = "" if meeting.node == 0 else "; the run is told of on node 0"
        _say(f"node {meeting.node} of {meeting.nodes}: ranks {first} to {first + processes - 1}{where}")
        handlers: list[Rendezvous] = []

        def rendezvous(is_over: Callable[[], bool]) -> Rendezvous:
            handlers.append(Rendezvous(meeting, is_over=is_over, join_s=self.part.join_s))
            return handlers[0]

        with environment(for_determinism(deterministic=self.spec.run.deterministic) | self._interface()):
            outcome = supervise(
                spec_path,
                self.part.supervision,
                processes=processes,
                fork=False,  # the store's own thread, on node 0, does not survive one
                meet=rendezvous,
                log="agent.log" if meeting.node == 0 else f"agent_{meeting.node}.log",
                worker=worker,
            )
        self._end(RunDir(spec_path.parent), outcome, handlers[0].ended)

    def _interface(self) -> dict[str, str | None]:
        """What gloo and NCCL are told; what the user chose in the environment stays."""
        if self.part.interface is not None:
            return {GLOO_INTERFACE: self.part.interface, NCCL_INTERFACE: self.part.interface}
        if GLOO_INTERFACE in os.environ:
            return {}
        # Gloo would take the address of this machine's name, which on Debian is 127.0.1.1; NCCL looks by itself.
        return {GLOO_INTERFACE: interface_towards(self.meeting.address())}

    def _end(self, run_dir: RunDir, outcome: Outcome, ended: OtherEnded | None) -> None:
        """Return if the run is done, raise what it ended with if not."""
        if outcome.succeeded:
            return settle(run_dir)
        if outcome.asked:
            self.meeting.end(INTERRUPTED, f"node {self.meeting.node} was asked to stop.")
            self.meeting.tell({"text": "", "time_ns": ASKED_NS})
            raise stopped(run_dir, since_ns=outcome.started_ns)
        if ended is None:
            self.meeting.end(FAILED, f"the ranks of node {self.meeting.node} failed.")
            own = find_cause(run_dir, since_ns=outcome.started_ns, exit_codes=outcome.exit_codes)
        else:
            own = Cause(text=ended.text, time_ns=ASKED_NS if ended.how == INTERRUPTED else time.time_ns())
        raise self._judged(run_dir, outcome, own, heard=ended is not None)

    def _judged(self, run_dir: RunDir, outcome: Outcome, own: Cause, *, heard: bool) -> RunnerError:
        """By the first cause among those that the machines found; what was only heard is not told again."""
        self.meeting.tell(None if heard else asdict(own))
        try:
            causes, silent = self.meeting.compare()
        except OtherEnded as gone:
            causes, silent = [] if heard else [asdict(replace(own, text=f"{gone.text}\n{own.text}"))], []
        first = min((Cause(**cause) for cause in causes), key=lambda cause: cause.time_ns, default=own)
        if first.time_ns == ASKED_NS:
            return interrupted(run_dir, "Another node was asked to stop.")
        text = first.after(outcome.num_restarts)
        if silent and first.time_ns:
            text += f"\nNot a word came of {', '.join(silent)}: look there first."
        return failed(run_dir, text, error=first.error)


def _told(spec: "RunSpec") -> Mapping[str, Any]:
    """What every machine must have been told alike."""
    launch = {key: value for key, value in spec.config["launch"].items() if key not in OWN}
    return {**spec.config, "launch": launch, **describe_code(spec)}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
