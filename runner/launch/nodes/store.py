"""The key-value store on node 0 that the launchers of all nodes read and write."""

import json
from collections.abc import Callable, Iterable
from typing import Any, final

from torch.distributed import DistError, PrefixStore, Store  # type: ignore[attr-defined]  # all are public

from runner.launch.node_group import EndReason, NodeEnded
from runner.launch.nodes.hosts import Endpoint


@final
class SharedStore:
    """JSON values in a TCPStore of torch's. Not thread-safe.

    Every method raises NodeEnded if node 0 cannot be reached. None waits for a key: while TCPStore waits, Ctrl-C has no
    effect and the end of another node goes unnoticed, so callers poll.
    """

    def __init__(self, store: Store, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._store = store

    def set(self, key: str, value: Any) -> None:
        """Set a key."""
        self._call(lambda: self._store.set(key, json.dumps(value)))

    def set_once(self, key: str, value: Any) -> None:
        """Set a key unless it is set already."""
        self._call(lambda: self._store.compare_set(key, "", json.dumps(value)))

    def get(self, key: str) -> Any:
        """The value of a key that is set."""
        return json.loads(self._call(lambda: self._store.get(key)))

    def has(self, key: str) -> bool:
        """Whether a key is set."""
        return bool(self._call(lambda: self._store.check([key])))

    def has_all(self, prefix: str, node_ranks: Iterable[int]) -> bool:
        """Whether `prefix/<node rank>` is set for all of these nodes."""
        return bool(self._call(lambda: self._store.check([f"{prefix}/{node_rank}" for node_rank in node_ranks])))

    def increment(self, key: str) -> int:
        """Add 1 to a counter, which begins at 0, and return its value."""
        return int(self._call(lambda: self._store.add(key, 1)))

    def prefixed(self, prefix: str) -> Store:
        """A part of the store for somebody else."""
        return PrefixStore(prefix, self._store)

    def _call(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except DistError as error:
            reason = str(error).partition("\n")[0]
            message = f"lost the connection to node 0 at {self.endpoint}: {reason}"
            raise NodeEnded(EndReason.FAILED, message) from error
