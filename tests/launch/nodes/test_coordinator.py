"""What the launchers of several machines agree on, over a real store, all of them in this process."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from machines import free_port

from runner.errors import Interrupted, LaunchError, SpecError
from runner.launch.node_group import EndReason, NodeEnded
from runner.launch.nodes.connect import connect
from runner.launch.nodes.coordinator import Coordinator
from runner.launch.nodes.hosts import Endpoint
from runner.launch.nodes.secret import SharedSecret

LOST_S = 2.0
SECRET = SharedSecret(path=Path("secret"), value=b"known to both of the nodes of a test")


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint(host="127.0.0.1", port=free_port())


@pytest.fixture
def pair(endpoint: Endpoint) -> Iterator[tuple[Coordinator, Coordinator]]:
    """Node 0 and node 1 of two; node 0 does not wait for one that has left, which would take five seconds."""
    times = {"join_s": 10.0, "lost_s": LOST_S}
    with ExitStack() as stack:
        first = stack.enter_context(connect(endpoint, secret=SECRET, node_rank=0, num_nodes=2, **times))
        yield first, stack.enter_context(connect(endpoint, secret=SECRET, node_rank=None, num_nodes=2, **times))
        begin = time.monotonic()
    assert time.monotonic() - begin < 2.5


def test_a_node_without_a_number_gets_the_next_and_one_too_many_is_refused(
    pair: tuple[Coordinator, Coordinator], endpoint: Endpoint
) -> None:
    assert [one.node_rank for one in pair] == [0, 1]
    assert pair[0].node_0_address() == "127.0.0.1"
    more = connect(endpoint, secret=SECRET, node_rank=None, num_nodes=2, join_s=10, lost_s=LOST_S)
    with (
        pytest.raises(LaunchError, match=r"all 2 nodes have already joined at 127\.0\.0\.1:\d+, and this would be"),
        more,
    ):
        pass


def test_different_declarations_are_refused_with_both_values(pair: tuple[Coordinator, Coordinator]) -> None:
    first, second = pair
    second._store.set("declaration/1", {"a": {"b": 1}, "versions": {"torch": "2"}})
    expected = (
        r"a\.b: 2 on node 0, 1 on node 1\. Start the same run on every node\.\n(.|\n)*c: 3 on node 0, nothing on node 1"
    )
    with pytest.raises(SpecError, match=expected):
        first.compare_declarations({"a": {"b": 2}, "versions": {"torch": "2"}, "c": 3}, timeout_s=5)
    with pytest.raises(SpecError, match=r"a\.b: 2 on node 0, 1 on node 1"):
        second.compare_declarations({"a": {"b": 1}, "versions": {"torch": "2"}}, timeout_s=5)


def test_what_a_node_said_before_it_ended_counts(pair: tuple[Coordinator, Coordinator]) -> None:
    first, second = pair
    looks = 0

    def compared() -> bool:
        """Node 0 says what it found, and ends, between the first look of node 1 and the next."""
        nonlocal looks
        looks += 1
        found = second._store.has("faults")
        if looks == 1:
            first._store.set("faults", [])
            first.announce_end(EndReason.FAILED, "node 0 failed: the declarations differ")
        return found

    second._heartbeat.wait_until(compared, timeout_s=5, describe=str)
    assert looks == 2
    with pytest.raises(NodeEnded, match="the declarations differ"):
        second.check()


def test_a_spec_that_is_not_written_or_not_seen_is_reported(
    pair: tuple[Coordinator, Coordinator], tmp_path: Path
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("{}")
    with pytest.raises(LaunchError, match=r"timed out after 0\.1 s: node 0 has not written the run's declaration\."):
        pair[1].share_spec(lambda: spec, timeout_s=0.1)
    with pytest.raises(
        LaunchError, match=r"timed out after 0\.2 s: not every node has confirmed that it sees the run's"
    ):
        pair[0].share_spec(lambda: spec, timeout_s=0.1)
    assert pair[1].share_spec(lambda: spec, timeout_s=5) == spec


def test_a_node_that_does_not_join_a_start_is_reported(pair: tuple[Coordinator, Coordinator]) -> None:
    soon = {"timeout_s": 0.1, "check": lambda: None}
    assert not pair[0].has_joined_start(0)
    with pytest.raises(LaunchError, match=r"timed out after 0\.1 s: node 0 is not ready for start 1 of the ranks\."):
        pair[1].join_start(0, lambda: 1, **soon)
    assert pair[0].has_joined_start(0)
    with socket.create_server(("127.0.0.1", 0)) as ranks_store:
        port = ranks_store.getsockname()[1]
        assert pair[0].join_start(0, lambda: port, **soon)[1] == port
        local_port = pair[1].join_start(0, lambda: 1, **soon)[1]
        with socket.create_connection(("127.0.0.1", local_port)) as rank, ranks_store.accept()[0] as reached:
            rank.sendall(b"from a rank of node 1")
            assert reached.recv(64) == b"from a rank of node 1"
    with pytest.raises(LaunchError, match=r"not every node is ready for start 2 of the ranks\."):
        pair[0].join_start(1, lambda: 1, **soon)


def test_a_node_without_heartbeats_is_lost_to_all(pair: tuple[Coordinator, Coordinator]) -> None:
    pair[1].check()
    began = time.monotonic()
    with pytest.raises(NodeEnded, match=r"no heartbeat from node 1 \(.*, process \d+\) for 2 s\.") as lost:
        check_for(pair[0], 20)
    assert time.monotonic() - began > LOST_S
    assert lost.value.reason is EndReason.FAILED
    with pytest.raises(NodeEnded, match="no heartbeat from"):
        pair[1].check()


def check_for(coordinator: Coordinator, seconds: float) -> None:
    """As a launcher does beside its ranks."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        coordinator.check()
        time.sleep(0.05)


def announce_and_check(endpoint: Endpoint, reason: EndReason) -> None:
    with connect(endpoint, secret=SECRET, node_rank=0, num_nodes=1, join_s=1, lost_s=LOST_S) as coordinator:
        coordinator.announce_end(reason, "it is over")
        coordinator.announce_end(EndReason.FAILED, "only the first announcement counts")
        coordinator.check()


@pytest.mark.parametrize(("reason", "error"), [(EndReason.INTERRUPTED, Interrupted), (EndReason.FAILED, LaunchError)])
def test_the_end_of_one_node_is_the_end_of_the_others(
    endpoint: Endpoint, reason: EndReason, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"^it is over$"):
        announce_and_check(endpoint, reason)


def test_a_lost_connection_to_node_0_ends_the_run(endpoint: Endpoint) -> None:
    """Its launcher was killed: here its store is closed, and it never says why."""
    with ExitStack() as node_0:
        node_0.enter_context(connect(endpoint, secret=SECRET, node_rank=0, num_nodes=2, join_s=1, lost_s=LOST_S))
        other = connect(endpoint, secret=SECRET, node_rank=1, num_nodes=2, join_s=1, lost_s=LOST_S)
        coordinator = other.__enter__()
    with pytest.raises(NodeEnded, match=r"lost the connection to node 0 at 127\.0\.0\.1:\d+: "):
        check_for(coordinator, 5)
    other.__exit__(None, None, None)
