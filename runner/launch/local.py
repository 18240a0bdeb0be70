"""Ranks on this machine: in this process if there is one, under torch's elastic agent if there are several."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from runner.errors import Fault
from runner.launch.environment import environment, for_determinism

if TYPE_CHECKING:
    from runner.spec.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class Local:
    """Run hardware.processes ranks here."""

    max_restarts: int = 0
    """How often the group of ranks is started again after one fails; it continues from the last commit."""
    grace_s: float = 30.0
    """Seconds from SIGTERM to SIGKILL: the time to reach a step boundary and commit."""
    interrupt_s: float = 4.0
    """The same after Ctrl-C, where a person waits."""
    monitor_interval_s: float = 0.1
    """Seconds between two looks at the ranks."""
    fork: bool = True
    """Fork ranks from this process where that is safe; false = always start separate interpreters."""

    def __post_init__(self) -> None:
        if self.max_restarts < 0:
            raise ValueError(f"max_restarts={self.max_restarts} must be at least 0; 0 = a failure ends the run.")
        for name, seconds in (("grace_s", self.grace_s), ("interrupt_s", self.interrupt_s)):
            if seconds < 0:
                raise ValueError(f"{name}={seconds} must be at least 0; 0 = kill the ranks at once.")
        if self.monitor_interval_s <= 0:
            raise ValueError(f"monitor_interval_s={self.monitor_interval_s} must be above 0, 0.1 for example.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Any spec that its hardware can hold can be launched here."""
        return ()

    def run(self, spec_path: Path, spec: "RunSpec") -> None:
        """Start every rank, wait, and return when all are done. Main thread only, since it takes over signals.

        Raises:
            RunFailed: a rank failed and no restart is left.
            Interrupted: a signal ended the run.
        """
        # Imported here: both bring torch along (0.8 s), the agent torch._dynamo too, and `runner check` needs neither.
        with environment(for_determinism(deterministic=spec.run.deterministic)):
            if spec.hardware.processes == 1 and self.max_restarts == 0:
                from runner.launch import in_process

                in_process.run(spec_path, interrupt_s=self.interrupt_s, grace_s=self.grace_s)
            else:
                from runner.launch import agent

                agent.run(spec_path, self, processes=spec.hardware.processes, can_fork=spec.hardware.can_fork)
