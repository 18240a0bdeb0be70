"""Ranks on this machine: in this process if there is one, under torch's elastic agent if there are several."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from runner.errors import Fault
from runner.launch.environment import environment, for_determinism
from runner.launch.supervision import Supervision

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


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
        _ = self.supervision

    @property
    def nodes(self) -> int:
        """This machine."""
        return 1

    @property
    def supervision(self) -> Supervision:
        """The keys that say how patient the launcher is."""
        return Supervision(
            max_restarts=self.max_restarts,
            grace_s=self.grace_s,
            interrupt_s=self.interrupt_s,
            monitor_interval_s=self.monitor_interval_s,
        )

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Any spec that its hardware can hold can be launched here."""
        return ()

    @contextmanager
    def open(self, spec: "RunSpec") -> Iterator["LocalLaunch"]:
        """There is nobody to wait for."""
        yield LocalLaunch(local=self, spec=spec)


@final
@dataclass(frozen=True, kw_only=True)
class LocalLaunch:
    """One attempt, on this machine alone."""

    local: Local
    spec: "RunSpec"

    def begin(self, freeze: Callable[[], Path]) -> Path:
        """Freeze it here."""
        return freeze()

    def run(self, spec_path: Path) -> None:
        """Start every rank, wait, and return when all are done. Main thread only, since it takes over signals.

        Raises:
            RunFailed: a rank failed and no restart is left.
            Interrupted: a signal ended the run.
        """
        # Imported here: both bring torch along (0.8 s), the agent torch._dynamo too, and `runner check` needs neither.
        hardware, local = self.spec.hardware, self.local
        with environment(for_determinism(deterministic=self.spec.run.deterministic)):
            if hardware.processes == 1 and local.max_restarts == 0:
                from runner.launch import in_process

                in_process.run(spec_path, interrupt_s=local.interrupt_s, grace_s=local.grace_s)
            else:
                from runner.launch import several

                fork = local.fork and hardware.can_fork
                several.run(spec_path, local.supervision, processes=hardware.processes, fork=fork)
