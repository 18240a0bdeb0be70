"""What machines say to each other, over a real store, all of them in this process."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from machines import free_port

from runner.errors import Interrupted, LaunchError, SpecError
from runner.launch.hosts import Endpoint
from runner.launch.join import meet
from runner.launch.meeting import FAILED, INTERRUPTED, Meeting, OtherEnded

LOST_S = 2.0


@pytest.fixture
def pair() -> Iterator[tuple[Meeting, Meeting]]:
    """Node 0 and node 1 of two."""
    place = Endpoint(host="127.0.0.1", port=free_port())
    times = {"join_s": 10.0, "lost_s": LOST_S}
    with ExitStack() as stack:
        first = stack.enter_context(meet(place, node_rank=0, nodes=2, **times))
        yield first, stack.enter_context(meet(place, node_rank=None, nodes=2, **times))


def test_who_names_no_number_gets_one_and_who_is_one_too_many_is_told(pair: tuple[Meeting, Meeting]) -> None:
    assert [one.node for one in pair] == [0, 1]
    assert pair[0].address() == "127.0.0.1"
    more = meet(pair[0].endpoint, node_rank=None, nodes=2, join_s=10, lost_s=LOST_S)
    with pytest.raises(LaunchError, match=r"2 nodes met at 127\.0\.0\.1:\d+ already, and this would be one more"), more:
        pass


def test_what_was_told_otherwise_is_named_with_both_values(pair: tuple[Meeting, Meeting]) -> None:
    first, second = pair
    second._say("told/1", {"a": {"b": 1}, "versions": {"torch": "2"}})
    told = (
        r"a\.b: 2 on node 0, 1 on node 1\. Start the same run on every node\.\n(.|\n)*c: 3 on node 0, nothing on node 1"
    )
    with pytest.raises(SpecError, match=told):
        first.agree({"a": {"b": 2}, "versions": {"torch": "2"}, "c": 3}, join_s=5)
    with pytest.raises(SpecError, match=r"a\.b: 2 on node 0, 1 on node 1"):
        second.agree({"a": {"b": 1}, "versions": {"torch": "2"}}, join_s=5)


def test_who_does_not_come_to_a_start_or_does_not_see_the_run_is_told_of(
    pair: tuple[Meeting, Meeting], tmp_path: Path
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("{}")
    nothing = {"within_s": 0.1, "meanwhile": lambda: None}
    with pytest.raises(LaunchError, match=r"after 0\.1 s: node 0 has not begun the run\."):
        pair[1].share(lambda: spec, within_s=0.1)
    with pytest.raises(
        LaunchError, match=r"after 0\.2 s: there are nodes that have not told whether they see the run's"
    ):
        pair[0].share(lambda: spec, within_s=0.1)
    assert pair[1].share(lambda: spec, within_s=5) == spec
    assert not pair[0].is_waited_for(0)
    with pytest.raises(LaunchError, match=r"after 0\.1 s: node 0 did not come to start number 1 of the ranks\."):
        pair[1].round(0, lambda: 1, **nothing)
    assert pair[0].is_waited_for(0)
    assert pair[0].round(0, lambda: 1234, **nothing)[1] == 1234
    assert pair[1].round(0, lambda: 1, **nothing)[1] == 1234
    with pytest.raises(LaunchError, match=r"there are nodes that did not come to start number 2 of the ranks\."):
        pair[0].round(1, lambda: 1, **nothing)


def test_a_machine_that_falls_silent_is_lost_to_all(pair: tuple[Meeting, Meeting]) -> None:
    pair[1].look()
    began = time.monotonic()
    with pytest.raises(OtherEnded, match=r"node 1 \(.*, process \d+\) has not been heard of for 2 s\.") as lost:
        look_for(pair[0], 20)
    assert time.monotonic() - began > LOST_S
    assert lost.value.how == FAILED
    with pytest.raises(OtherEnded, match="has not been heard of"):
        pair[1].look()


def look_for(meeting: Meeting, seconds: float) -> None:
    """As a launcher does beside its ranks."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        meeting.look()
        time.sleep(0.05)


def hear_the_end(how: str) -> None:
    place = Endpoint(host="127.0.0.1", port=free_port())
    with meet(place, node_rank=0, nodes=1, join_s=1, lost_s=LOST_S) as meeting:
        meeting.end(how, "it is over")
        meeting.end(FAILED, "only the first word counts")
        meeting.look()


@pytest.mark.parametrize(("how", "error"), [(INTERRUPTED, Interrupted), (FAILED, LaunchError)])
def test_the_end_of_one_is_the_end_of_the_other(how: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^it is over$"):
        hear_the_end(how)
