"""The group `launch`."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from runner.protocols.part import Part

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


class Launch(Protocol):
    """One attempt at a run, in the launching process of one machine."""

    def begin(self, freeze: Callable[[], Path]) -> Path:
        """The spec file of this attempt.

        Args:
            freeze: writes it. Of several machines one calls it, and all are given its file.

        Raises:
            RunFailed: a machine does not see the file.
        """
        ...

    def run(self, spec_path: Path) -> None:
        """Start this machine's ranks with the spec's path, wait, and return when all are done.

        Raises:
            RunFailed: a rank failed and no restart is left.
            Interrupted: a signal ended the run.
        """
        ...


class Launcher(Part, Protocol):
    """Starts the ranks of a run and sees them end."""

    @property
    def nodes(self) -> int:
        """How many machines take part, with hardware.processes ranks each."""
        ...

    def open(self, spec: "RunSpec") -> AbstractContextManager[Launch]:
        """An attempt that nothing was written or started for yet; several machines have met when it is entered.

        Raises:
            SpecError: the machines were told different things.
            RunFailed: a machine did not come.
        """
        ...
