"""Ranks as threads: a world whose collectives are a dictionary, for tests of thousands of schedules."""

import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

TIMEOUT_S = 30


class Meeting:
    """What ranks have brought to each of their collectives."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.brought: defaultdict[int, dict[int, Any]] = defaultdict(dict)
        self.failed = False


class ThreadWorld:
    """What a source asks of a world."""

    def __init__(self, rank: int, size: int, meeting: Meeting) -> None:
        self.rank, self.size, self.device = rank, size, torch.device("cpu")
        self._meeting = meeting
        self._calls = 0

    def gather_objects(self, value: Any) -> list[Any]:
        self._calls += 1
        with self._meeting.changed:
            brought = self._meeting.brought[self._calls]
            brought[self.rank] = value
            self._meeting.changed.notify_all()
            self._meeting.changed.wait_for(lambda: len(brought) == self.size or self._meeting.failed, TIMEOUT_S)
            if len(brought) < self.size:
                raise TimeoutError(f"rank {self.rank} waited in vain")
            return [brought[rank] for rank in range(self.size)]

    def broadcast_object(self, value: Any, *, source: int = 0) -> Any:
        return self.gather_objects(value)[source]

    def scatter(self, parts: Any) -> Any:
        return self.gather_objects(parts)[0][self.rank].clone()

    def any(self, flag: bool) -> bool:
        return any(self.gather_objects(flag))


def on_threads(size: int, function: Callable[[ThreadWorld], Any]) -> list[Any]:
    """What the function returns on each rank, or the error that it raised there."""
    meeting = Meeting()
    results: list[Any] = [None] * size

    def rank(number: int) -> None:
        try:
            results[number] = function(ThreadWorld(number, size, meeting))
        except Exception as error:  # noqa: BLE001  the test looks at it
            results[number] = error
            with meeting.changed:
                meeting.failed = True
                meeting.changed.notify_all()

    threads = [threading.Thread(target=rank, args=(number,), daemon=True) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * TIMEOUT_S)
    return results
