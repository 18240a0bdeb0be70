"""A run whose ranks live and end with the process that started it."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final


@final
@dataclass(frozen=True, kw_only=True)
class AttachedJob:
    """A run that takes place while it is waited for, under this process or in it."""

    run: Callable[[], None]
    """Starts the ranks, and returns or raises when they have ended. While it runs, SIGTERM stops the run."""
    attached: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The process that has to be signalled to stop the run."""
        return f"process {os.getpid()}"

    def wait(self) -> None:
        """Run. Main thread only, since signals are handled meanwhile."""
        self.run()

    def cancel(self) -> None:
        """Send SIGTERM to this process. From another thread, while `wait` runs."""
        os.kill(os.getpid(), signal.SIGTERM)
