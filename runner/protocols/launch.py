"""The group `launch`: how the ranks of a run are started.

The command uses a launcher in three steps: it enters `open(spec)`, where several machines connect to each other; calls
`Launch.begin`, which writes the spec of the attempt; and calls `Launch.start`, which returns a `Job`. A job is either
*attached*, and the command waits for it (the ranks run on this machine and end with the command), or *submitted*: the
command prints its name and returns, and something else (a queue, a background process) runs the ranks later. The state
in status.json is `queued` from `begin` until a rank sets it to `running`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from runner.protocols.part import Part

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


class Job(Protocol):
    """A run whose ranks were started or submitted."""

    @property
    def attached(self) -> bool:
        """Whether the run ends with this process.

        The command then calls `wait`, and the ranks of an attached job may run inside that call. Otherwise the job was
        submitted and continues without this process, and the command returns at once.
        """
        ...

    @property
    def name(self) -> str:
        """A name by which a user can find the job: `process 1234`, `Slurm job 5678`. One line."""
        ...

    def wait(self) -> None:
        """Wait until every rank has finished.

        Raises:
            RunFailed: a rank failed, and no restart is left.
            Interrupted: the run was asked to stop.
        """
        ...

    def cancel(self) -> None:
        """Ask the run to save a checkpoint and stop, and return without waiting for it."""
        ...


class Launch(Protocol):
    """One attempt at a run, in the launching process of one machine."""

    def begin(self, freeze: Callable[[], Path]) -> Path:
        """Return the spec file of this attempt.

        Args:
            freeze: writes the file and returns its path. With several machines, only one of them calls it, and all of
                them return its file.

        Raises:
            LaunchError: a machine cannot see the file.
        """
        ...

    def start(self, spec_path: Path) -> Job:
        """Start or submit the ranks of this machine, each of which gets the path of the spec.

        Raises:
            RunFailed: they could not be started or submitted.
        """
        ...


class Launcher(Part, Protocol):
    """Starts the ranks of a run."""

    @property
    def nodes(self) -> int:
        """The number of machines in the run, with hardware.processes ranks each."""
        ...

    def open(self, spec: "RunSpec") -> AbstractContextManager[Launch]:
        """A context for one attempt; nothing has been written or started yet.

        With several machines, entering it waits until all of them have connected and compared their declarations.

        Raises:
            SpecError: the machines were given different declarations.
            LaunchError: a machine did not join in time.
        """
        ...


@runtime_checkable
class HandsOverSecrets(Protocol):
    """A launcher whose ranks are started by the launching process, which hands secrets to them in memory.

    For any other one, a secret that is not taken from the environment is a fault.
    """

    hands_over_secrets: ClassVar[bool]
