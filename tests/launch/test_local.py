"""The part, and a run that ends well."""

import os
import socket
from pathlib import Path

import pytest
from launching import Launcher

from runner.launch.supervision import Supervision
from runner.world.environment import environment, for_one_machine


@pytest.mark.parametrize(("processes", "fork"), [(1, True), (2, True), (2, False)])
def test_a_run_ends_well_and_says_nothing(launch: Launcher, processes: int, fork: bool) -> None:
    run = launch(processes=processes, mode="train", fork=fork, forks=False)
    assert run.end() == (0, "", "")
    assert run.run_dir.read_status()["state"] == "done"
    assert len(run.rank_pids()) == processes
    assert not run.alive()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_restarts": -1}, "max_restarts=-1 must be at least 0; 0 = a failure ends the run."),
        ({"grace_s": -1.0}, "grace_s=-1.0 must be at least 0; 0 = kill the ranks at once."),
        ({"interrupt_s": -1.0}, "interrupt_s=-1.0 must be at least 0; 0 = kill the ranks at once."),
        ({"monitor_interval_s": 0.0}, "monitor_interval_s=0.0 must be above 0, 0.1 for example."),
    ],
)
def test_a_value_out_of_range_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace(".", r"\.") + "$"):
        Supervision(**options)  # type: ignore[arg-type]


def test_gloo_and_nccl_are_told_to_use_loopback_unless_the_user_has_told_them_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    loopback = dict(socket.if_nameindex())[1]
    assert for_one_machine() == {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": f"={loopback}"}
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth1")
    assert for_one_machine() == {"NCCL_SOCKET_IFNAME": f"={loopback}"}


def test_the_environment_is_put_back(tmp_path: Path) -> None:
    before = dict(os.environ)
    with environment({"RANK": "3", "PATH": None}):
        assert os.environ["RANK"] == "3"
        assert "PATH" not in os.environ
    assert dict(os.environ) == before
