"""One thing at a time, done beside the run."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import final


@final
class Background:
    """Runs an action in a thread of its own; what it raises is raised by who waits for it.

    The thread ends with the process: a run that fails does not stay for a checkpoint that was under way.
    """

    def __init__(self) -> None:
        self._under_way: Future[None] | None = None

    def start(self, action: Callable[[], None]) -> None:
        """Begin; what was begun before must have been waited for."""
        assert self._under_way is None
        self._under_way = future = Future[None]()

        def act() -> None:
            try:
                action()
            except BaseException as error:  # noqa: BLE001  # whatever it was, the waiting thread hears it
                future.set_exception(error)
            else:
                future.set_result(None)

        threading.Thread(target=act, name="checkpoint", daemon=True).start()

    def wait(self) -> None:
        """Return when nothing is under way; raises what the action raised, once."""
        if self._under_way is not None:
            future, self._under_way = self._under_way, None
            future.result()

    @property
    def failed(self) -> bool:
        """Whether it has ended, and badly."""
        return self._under_way is not None and self._under_way.done() and self._under_way.exception() is not None
