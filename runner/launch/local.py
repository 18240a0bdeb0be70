"""Ranks on this machine: in this process if there is one, under torch's elastic agent if there are several."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from runner.config.sections import flattened
from runner.errors import Fault
from runner.launch import single_node
from runner.launch.attached import AttachedJob
from runner.launch.supervision import Supervision

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class Local:
    """Run hardware.processes ranks here."""

    supervision: Supervision = flattened(Supervision)
    """Restarts and timeouts."""
    fork: bool = True
    """Fork ranks from this process where that is safe; false = always start new interpreters."""
    hands_over_secrets: ClassVar[bool] = True

    @property
    def nodes(self) -> int:
        """This machine."""
        return 1

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Any spec that its hardware can hold can be launched here."""
        return ()

    @contextmanager
    def open(self, spec: "RunSpec") -> Iterator["LocalLaunch"]:
        """There is no other machine to wait for."""
        yield LocalLaunch(local=self, spec=spec)


@final
@dataclass(frozen=True, kw_only=True)
class LocalLaunch:
    """One attempt, on this machine only."""

    local: Local
    spec: "RunSpec"

    def begin(self, freeze: Callable[[], Path]) -> Path:
        """Freeze it on this machine."""
        return freeze()

    def start(self, spec_path: Path) -> AttachedJob:
        """A job whose ranks run while it is waited for."""
        local = self.local
        return AttachedJob(run=partial(single_node.run, spec_path, self.spec, local.supervision, fork=local.fork))
