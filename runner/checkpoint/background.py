"""Run one action at a time in a background thread."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import final


@final
class Background:
    """Runs an action in a thread of its own. `wait` raises what the action raised.

    It is a daemon thread: a run that fails does not wait for a checkpoint that is under way.
    """

    def __init__(self) -> None:
        self._under_way: Future[None] | None = None

    def start(self, action: Callable[[], None]) -> None:
        """Start an action. The one before must have been waited for."""
        assert self._under_way is None
        self._under_way = future = Future[None]()

        def act() -> None:
            try:
                action()
            except BaseException as error:  # noqa: BLE001  # raised again by wait
                future.set_exception(error)
            else:
                future.set_result(None)

        threading.Thread(target=act, name="checkpoint", daemon=True).start()

    def wait(self) -> None:
        """Wait until nothing is under way. Raises what the action raised, once."""
        if self._under_way is not None:
            future, self._under_way = self._under_way, None
            future.result()

    @property
    def failed(self) -> bool:
        """Whether the action has ended with an error that `wait` would raise."""
        return self._under_way is not None and self._under_way.done() and self._under_way.exception() is not None
