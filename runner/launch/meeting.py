"""The launchers of one run's machines: they find each other, agree, and hear of each other's end.

Node 0 hosts a store of torch's (TCPStore), which all reach. What each one says stands there as JSON. The store's own
waiting would keep Ctrl-C and the end of another machine from us: we look, and sleep in between.
"""

import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch.distributed import DistError, PrefixStore, Store  # type: ignore[attr-defined]  # all are public

from runner.config.parts import MISSING
from runner.config.store import diff
from runner.errors import Fault, LaunchError, SpecError
from runner.launch.hosts import Endpoint

POLL_S = 0.05
BEAT_S = 1.0
VISIBLE_S = 60.0
"""How long a file that node 0 wrote may take to be seen elsewhere: NFS keeps directories for as long."""
SETTLE_S = 5.0
"""How long the machines wait for each other when all of them are at their end."""
INTERRUPTED, FAILED = "interrupted", "failed"


@final
class OtherEnded(Exception):
    """Another machine has ended the run."""

    def __init__(self, how: str, text: str) -> None:
        super().__init__(text)
        self.how = how
        self.text = text


@final
@dataclass
class _Heard:
    count: bytes
    at: float


@final
class Meeting:
    """What the machines of one attempt say to each other. Only from one thread."""

    def __init__(self, store: Store, *, node: int, nodes: int, endpoint: Endpoint, lost_s: float) -> None:
        self.node = node
        self.nodes = nodes
        self.endpoint = endpoint
        self._store = store
        self._lost_s = lost_s
        self._beats = 0
        self._beaten_at = 0.0
        self._heard: dict[int, _Heard] = {}
        self._silent: set[int] = set()

    def reached(self, address: str) -> None:
        """Let node 0 know at which address this machine found it."""
        self._say("address", address)

    def agree(self, told: Mapping[str, Any], *, join_s: float) -> None:
        """Compare what each machine was told with what node 0 was, as soon as all are there.

        Raises:
            SpecError: there are differences; all of them, on every machine.
            LaunchError: a machine did not come in time.
            OtherEnded: one of them ended.
        """
        self._say(f"told/{self.node}", told)
        if self.node == 0:
            others = range(1, self.nodes)
            self._await(lambda: self._all("told", others), within_s=join_s, what=lambda: self._absent(others))
            faults = _differences(self._hear("told/0"), {node: self._hear(f"told/{node}") for node in others})
            self._say("verdict", [[fault.key, fault.message] for fault in faults])
        else:
            # A little longer than node 0, which can say who is missing.
            within_s = join_s + SETTLE_S
            self._await(lambda: self._there("verdict"), within_s=within_s, what=lambda: "node 0 waits for other nodes")
        found = [Fault(key=key, message=message) for key, message in self._hear("verdict")]
        if found:
            raise SpecError(*found)

    def share(self, freeze: Callable[[], Path], *, within_s: float) -> Path:
        """The file that node 0 writes now, once all machines see it, VISIBLE_S from now at the latest.

        Raises:
            LaunchError: a machine does not see it.
            OtherEnded: one of them ended.
        """
        within_s = min(within_s, VISIBLE_S)
        if self.node == 0:
            path = freeze().absolute()
            self._say("spec", {"path": str(path), "digest": _digest(path)})
            others = range(1, self.nodes)
            what = "there are nodes that have not told whether they see the run's directory"
            self._await(lambda: self._all("seen", others), within_s=2 * within_s, what=lambda: what)
            return path
        self._await(lambda: self._there("spec"), within_s=within_s, what=lambda: "node 0 has not begun the run")
        spec = self._hear("spec")
        path = Path(spec["path"])
        self._await(
            lambda: path.exists() and _digest(path) == spec["digest"],
            within_s=within_s,
            what=lambda: (
                f"{self._name_of(self.node)} does not see {path}, which node 0 wrote. Every node needs the same working"
                " directory or run.dir, on a file system that all of them share"
            ),
        )
        self._say(f"seen/{self.node}", True)
        return path

    def round(
        self, number: int, port: Callable[[], int], *, within_s: float, meanwhile: Callable[[], None]
    ) -> tuple[Store, int]:
        """Come together for a start of all ranks.

        Args:
            number: how many starts were before.
            port: reserves one on node 0, for rank 0's store.
            within_s: how long to wait for the others.
            meanwhile: called while waiting; may raise.

        Returns:
            A store that only this start uses, and the port.

        Raises:
            LaunchError: a machine did not come in time.
            OtherEnded: one of them ended.
        """
        name = f"round/{number}"
        self._say(f"{name}/{self.node}", True)
        self._say(f"{name}/begun", True)
        if self.node == 0:
            everyone = range(self.nodes)
            what = f"there are nodes that did not come to start number {number + 1} of the ranks"
            came = functools.partial(self._all, name, everyone)
            self._await(came, within_s=within_s, what=lambda: what, meanwhile=meanwhile)
            self._say(f"{name}/port", port())
        else:
            what = f"node 0 did not come to start number {number + 1} of the ranks"
            told = functools.partial(self._there, f"{name}/port")
            self._await(told, within_s=within_s, what=lambda: what, meanwhile=meanwhile)
        return PrefixStore(f"{name}/agents", self._store), int(self._hear(f"{name}/port"))

    @property
    def host(self) -> str:
        """Of node 0."""
        return self.endpoint.host

    def address(self) -> str:
        """Of node 0, as the others reach it: by its own name it may find itself at a loopback address."""
        return str(self._hear("address")) if self.nodes > 1 else self.endpoint.host

    def is_waited_for(self, number: int) -> bool:
        """Whether a machine has come to that start."""
        return self._there(f"round/{number}/begun")

    def look(self) -> None:
        """Say that this machine is there, and hear whether the others are.

        Raises:
            OtherEnded: one of them ended or has fallen silent.
        """
        now = time.monotonic()
        if now - self._beaten_at > BEAT_S:
            self._beats, self._beaten_at = self._beats + 1, now
            self._say(f"beat/{self.node}", self._beats)
            if self.node == 0:
                self._listen(now)
        if self._there("ended"):
            raise OtherEnded(**self._hear("ended"))

    def end(self, how: str, text: str) -> None:
        """Let the others know that the run is over; the first to say so is heard."""
        with contextlib.suppress(OtherEnded):
            self._ask(lambda: self._store.compare_set("ended", "", json.dumps({"how": how, "text": text})))

    def tell(self, cause: Mapping[str, Any] | None) -> None:
        """What this machine found to be the cause of the end; None = it found nothing."""
        with contextlib.suppress(OtherEnded):
            self._say(f"cause/{self.node}", cause)

    def compare(self) -> tuple[list[dict[str, Any]], list[str]]:
        """What all machines told, and the names of those that do not tell in time.

        Raises:
            OtherEnded: node 0 cannot be asked any more.
        """
        everyone = range(self.nodes)
        deadline = time.monotonic() + SETTLE_S
        while not self._all("cause", everyone) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        told = [node for node in everyone if self._there(f"cause/{node}")]
        causes = [self._hear(f"cause/{node}") for node in told]
        self._silent = {node for node in everyone if node not in told}
        return [cause for cause in causes if cause is not None], [self._name_of(node) for node in sorted(self._silent)]

    def leave(self) -> None:
        """The last word; node 0 hears that of the others before its store closes."""
        deadline = time.monotonic() + SETTLE_S
        with contextlib.suppress(OtherEnded):
            self._say(f"left/{self.node}", True)
            others = set(range(1, self.nodes)) - self._silent
            came = [node for node in others if self._there(f"told/{node}")]
            while self.node == 0 and not self._all("left", came) and time.monotonic() < deadline:
                time.sleep(POLL_S)

    def _await(
        self,
        condition: Callable[[], bool],
        *,
        within_s: float,
        what: Callable[[], str],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            meanwhile()
            self.look()
            if time.monotonic() > deadline:
                raise LaunchError(f"after {within_s:g} s: {what()}.")
            time.sleep(POLL_S)

    def _absent(self, others: range) -> str:
        missing = [node for node in others if not self._there(f"told/{node}")]
        names = ", ".join(str(node) for node in missing)
        return (
            f"{len(others) - len(missing)} of {len(others)} other nodes came to {self.endpoint}; missing: {names}."
            " Start the same command on each of them, and see that they reach that port"
        )

    def _listen(self, now: float) -> None:
        """Node 0 says for all which machine has fallen silent."""
        for node in range(1, self.nodes):
            if not self._there(f"beat/{node}"):
                continue
            count = self._ask(lambda node=node: self._store.get(f"beat/{node}"))  # type: ignore[misc]
            heard = self._heard.get(node)
            if heard is None or heard.count != count:
                self._heard[node] = _Heard(count, now)
            elif now - heard.at > self._lost_s:
                self.end(FAILED, f"{self._name_of(node)} has not been heard of for {self._lost_s:g} s.")

    def _all(self, what: str, nodes: Iterable[int]) -> bool:
        return bool(self._ask(lambda: self._store.check([f"{what}/{node}" for node in nodes])))

    def _there(self, key: str) -> bool:
        return bool(self._ask(lambda: self._store.check([key])))

    def _say(self, key: str, value: Any) -> None:
        self._ask(lambda: self._store.set(key, json.dumps(value)))

    def _hear(self, key: str) -> Any:
        return json.loads(self._ask(lambda: self._store.get(key)))

    def _ask(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except DistError as error:
            reason = str(error).partition("\n")[0]
            raise OtherEnded(FAILED, f"node 0 cannot be reached at {self.endpoint} any more: {reason}") from error

    def _name_of(self, node: int) -> str:
        return f"node {node} ({self._ask(lambda: self._store.get(f'seat/{node}')).decode()})"


def _differences(told: Mapping[str, Any], others: Mapping[int, Mapping[str, Any]]) -> Iterator[Fault]:
    found: dict[str, list[str]] = {}
    for node, other in others.items():
        for key, (here, there) in diff(told, other).items():
            found.setdefault(key, [f"{_shown(here)} on node 0"]).append(f"{_shown(there)} on node {node}")
    for key, values in found.items():
        yield Fault(key=key, message=f"{', '.join(values)}. Start the same run on every node.")


def _shown(value: Any) -> str:
    return "nothing" if value == MISSING else repr(value)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
