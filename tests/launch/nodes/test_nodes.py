"""Several machines join, agree, train as one, and end together. Each is a launching process of its own."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from machines import ADDRESSES, NAMES, Node, StartNode, can_make_hosts, free_port, two_hosts, wait_for

from runner.config.run_dir import RunDir
from tests.conftest import CHECKOUT

Pair = Callable[..., list[Node]]
REFUSED = 2
INTERRUPTED = 130


@pytest.fixture
def pair(node: StartNode) -> Pair:
    """Two nodes on this machine, with a rank each, and what only one of them is told."""

    def start(*argv: str, only_1: tuple[str, ...] = (), **options: Any) -> list[Node]:
        where = ["launch=nodes", f"launch.rendezvous=127.0.0.1:{free_port()}", *argv[2:]]
        return [
            node(*argv[:2], *where, f"launch.node_rank={rank}", *(only_1 if rank else ()), **options)
            for rank in range(2)
        ]

    return start


def losses(run_dir: RunDir) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time_s"} for line in lines]


def run_dir_of(ends: list[tuple[int, str, str]]) -> RunDir:
    """The one that both print, after both ended well."""
    assert [code for code, _, _ in ends] == [0, 0], ends
    last = {stdout.splitlines()[-1] for _, stdout, _ in ends}
    assert len(last) == 1
    return RunDir(Path(last.pop()))


def check_no_secret(project: Path, run_dir: RunDir, ends: list[tuple[int, str, str]]) -> None:
    """Neither the run directory nor the terminal holds it, and git does not see it."""
    file = project / ".runner" / "secret"
    assert file.stat().st_mode & 0o777 == 0o600
    secret = file.read_bytes().strip()
    assert len(secret) == 64
    assert not any(secret.decode() in stdout + stderr for _, stdout, stderr in ends)
    assert not [path for path in run_dir.path.rglob("*") if path.is_file() and secret in path.read_bytes()]
    git = shutil.which("git")
    assert git is not None
    subprocess.run([git, "init", "-q"], cwd=project, check=True)
    status: Any = subprocess.run([git, "status", "--porcelain", "-uall"], cwd=project, check=True, capture_output=True)
    assert b".runner" not in status.stdout


def test_two_nodes_are_the_run_of_two_processes_and_no_file_of_it_holds_the_secret(
    pair: Pair, project: Path, runner: Callable[..., Any]
) -> None:
    common = ("train", "points", "strategy=ddp", "batch.micro_items=3")
    ends = [each.end() for each in pair(*common, forks=False)]
    together = run_dir_of(ends)
    alone = runner(*common, "hardware.processes=2").run_dir
    assert losses(together) == losses(alone)
    assert set(together.path.parent.iterdir()) == {together.path, alone.path}
    assert "is waiting for 1 more at 127.0.0.1:" in ends[0][2]
    assert "ranks 1 to 1; node 0 shows the progress of the run" in ends[1][2]
    assert "step 1/10" not in ends[1][2]
    assert (together.logs / "rank_1.log").exists()
    check_no_secret(project, together, ends)


@pytest.mark.exhaustive  # a restart is seen below as well, where a hook fails after it
def test_a_killed_rank_restarts_the_ranks_of_all_nodes(pair: Pair) -> None:
    ends = [
        each.end()
        for each in pair(
            "train", "points", "strategy=ddp", "loss._target_=user_hooks.points.failing_once",
            "launch.max_restarts=1", "checkpoint.every_steps=2", "eval.every_steps=5",
        )
    ]  # fmt: skip
    run_dir = run_dir_of(ends)
    assert run_dir.read_status()["state"] == "done"
    assert "continu" in run_dir.rank_log(0).read_text()


def test_a_killed_rank_is_reported_on_every_node(pair: Pair) -> None:
    words = ("strategy=ddp", "loss._target_=user_hooks.points.failing_once", "eval.every_steps=5")
    for each in pair("train", "points", *words):
        code, _, stderr = each.end()
        assert code == 1
        assert re.search(r"^rank 1 was killed by SIGKILL; the last recorded step is \d\.", stderr, re.MULTILINE)


def test_a_killed_rank_restarts_the_ranks_of_all_nodes_and_a_failing_hook_is_reported_on_every_node(pair: Pair) -> None:
    """Rank 1 is killed after five steps, and raises after it has gone on from the checkpoint of the fourth."""
    words = ("strategy=ddp", "loss._target_=user_hooks.points.killed_and_failing")
    often = ("launch.max_restarts=1", "checkpoint.every_steps=2", "eval.every_steps=5")
    for code, stdout, stderr in [each.end() for each in pair("train", "points", *words, *often)]:
        assert code == 1
        assert re.search(
            r"^rank 1 failed at step \d: ZeroDivisionError: the hook divides by zero$", stderr, re.MULTILINE
        )
        assert "(after 1 restarts)" in stderr
        run_dir = RunDir(Path(stdout.splitlines()[-1]))
        assert run_dir.read_status()["state"] == "failed"
        assert losses(run_dir)[-1]["step"] > 5, "the second start has trained"
        assert "continu" in run_dir.rank_log(0).read_text()


LONG = ("train", "points", "strategy=ddp", "run.steps=100000", "run.dir=long", "checkpoint.every_steps=null")


def wait_for_step(project: Path, step: int) -> None:
    wait_for(lambda: RunDir(project / "long").read_status()["step"] >= step, f"step {step}")


def test_ctrl_c_on_one_node_stops_and_commits_all(pair: Pair, project: Path, runner: Callable[..., Any]) -> None:
    nodes = pair(*LONG)
    wait_for_step(project, 3)
    nodes[1].send(signal.SIGINT)
    ends = [each.end(timeout_s=20) for each in nodes]
    assert [code for code, _, _ in ends] == [INTERRUPTED, INTERRUPTED], ends
    run_dir = RunDir(project / "long")
    status = run_dir.read_status()
    assert status["state"] == "preempted"
    assert [path.name for path in run_dir.checkpoints.glob("step_*")] == [f"step_{status['step']}"]

    # On two nodes, a run is resumed below: their ranks are new interpreters.
    again = runner("resume", "long", f"run.steps={status['step'] + 2}", "launch=local", "hardware.processes=2")
    assert again.run_dir.path == run_dir.path
    assert len(run_dir.specs()) == 2
    assert run_dir.read_status() | {"metrics": {}} == {"state": "done", "step": status["step"] + 2, "metrics": {}}


@pytest.mark.parametrize("gone", [pytest.param(0, marks=pytest.mark.exhaustive), 1])
def test_a_node_whose_launcher_is_killed_is_named(pair: Pair, project: Path, gone: int) -> None:
    nodes = pair(*LONG, "launch.lost_s=3")
    wait_for_step(project, 3)
    nodes[gone].send(signal.SIGKILL)
    code, _, stderr = nodes[1 - gone].end(timeout_s=30)
    assert code == 1
    if gone == 0:
        assert re.search(r"lost the connection to node 0 at 127\.0\.0\.1:\d+: ", stderr)
    else:
        assert re.search(r"^No report from node 1 \(.*, process \d+\): look there first\.$", stderr, re.MULTILINE)
    assert RunDir(project / "long").read_status()["state"] == "failed"


def test_different_declarations_are_refused_on_every_node_and_nothing_is_made(pair: Pair, project: Path) -> None:
    nodes = pair("train", "points", "strategy=ddp", only_1=("optimizer.lr=0.5", "launch.interface=lo", "run.steps=9"))
    for each in nodes:
        code, _, stderr = each.end()
        assert code == REFUSED, stderr
        assert "optimizer.lr: 0.001 on node 0, 0.5 on node 1. Start the same run on every node." in stderr
        assert "run.steps: 10 on node 0, 9 on node 1." in stderr
        assert "launch" not in stderr.partition("optimizer.lr")[2]
    assert not (project / "outputs").exists()


def test_a_node_that_does_not_join_is_named(node: StartNode) -> None:
    port = free_port()
    where = ("launch=nodes", f"launch.rendezvous=127.0.0.1:{port}", "launch.join_s=1", "strategy=ddp", "launch.nodes=3")
    nodes = [node("train", "points", *where, f"launch.node_rank={rank}") for rank in (0, 2)]
    for each in nodes:
        code, stdout, stderr = each.end()
        assert (code, stdout) == (9, "")
        assert f"1 of 2 other nodes joined at 127.0.0.1:{port}; missing: 1. Start the same command on" in stderr


def test_without_node_0_the_others_give_up(node: StartNode) -> None:
    port = free_port()
    where = ("launch=nodes", f"launch.rendezvous=127.0.0.1:{port}", "launch.join_s=1", "strategy=ddp")
    code, _, stderr = node("train", "points", *where, "launch.node_rank=1").end()
    assert code == 9
    assert f"cannot connect to node 0 at 127.0.0.1:{port} within 1 s (" in stderr


def test_two_nodes_of_one_number_are_refused(node: StartNode) -> None:
    where = ("launch=nodes", f"launch.rendezvous=127.0.0.1:{free_port()}", "strategy=ddp", "launch.nodes=3")
    nodes = [node("train", "points", *where, f"launch.node_rank={rank}") for rank in (0, 1, 1)]
    wait_for(lambda: any(each.has_ended() for each in nodes), "refusal")
    ended = next(each for each in nodes if each.has_ended())
    told = r"^launch\.node_rank=1 is already taken by \S+, process \d+\. Give every node its own number\.$"
    assert re.search(told, ended.end()[2], re.MULTILINE)


def test_an_interface_that_is_not_there_is_refused_before_anybody_is_waited_for(runner: Callable[..., Any]) -> None:
    where = ("launch=nodes", "launch.rendezvous=127.0.0.1", "launch.interface=eth77", "strategy=ddp")
    said = runner("train", "points", *where, code=REFUSED).stderr
    assert re.search(r"launch\.interface: eth77 is not a network interface of this machine, which has lo\b", said)


def test_a_taken_port_is_refused(node: StartNode) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        where = ("launch=nodes", f"launch.rendezvous={place}", "launch.node_rank=0", "strategy=ddp")
        code, _, stderr = node("train", "points", *where).end()
    assert code == 9
    assert f"node 0 cannot listen at {place}: " in stderr
    assert "choose another one in launch.rendezvous." in stderr


needs_root = pytest.mark.skipif(not can_make_hosts(), reason="needs root and iproute2 to make network hosts")


@needs_root
def test_two_hosts_by_a_hostfile_and_a_resume_by_arrival(
    node: StartNode, project: Path, runner: Callable[..., Any]
) -> None:
    """The same words on both: who is who follows from their addresses."""
    with two_hosts(f"h{os.getpid()}") as hosts:
        lines = ["# in the order of node ranks", *(f"{name} slots=1" for name in NAMES)]
        (project / "hosts").write_text("\n".join(lines) + "\n")
        words = ("train", "points", "strategy=fsdp", "launch=nodes", "launch.hostfile=hosts", "run.stop_at_step=4")
        first = run_dir_of([each.end() for each in [node(*words, host=name) for name in reversed(hosts)]])
        again = ("resume", str(first.path), "launch.hostfile=null", f"launch.rendezvous={ADDRESSES[0]}:29511")
        run_dir_of([each.end() for each in [node(*again, host=name) for name in hosts]])
        (project / "others").write_text("10.213.7.8\n10.213.7.9\n")
        code, _, stderr = node(*words, "launch.hostfile=others", host=hosts[0]).end()
        assert code == REFUSED
        assert "launch.hostfile: others does not list this machine. Add it, or set launch.node_rank." in stderr
    alone = runner("train", "points", "strategy=fsdp", "hardware.processes=2").run_dir
    assert losses(first) == losses(alone)


@needs_root
@pytest.mark.exhaustive
@pytest.mark.parametrize("strategy", sorted(path.stem for path in (CHECKOUT / "conf" / "strategy").glob("*.yaml")))
def test_every_strategy_trains_over_two_hosts_as_in_two_processes(
    node: StartNode, runner: Callable[..., Any], strategy: str
) -> None:
    words: tuple[str, ...] = ("train", "points", f"strategy={strategy}", "batch.micro_items=3")
    if strategy == "single":
        pytest.skip("one process")
    if strategy.startswith("hsdp"):
        words = (*words, "strategy.shard_size=2")  # on one machine: all of them
    with two_hosts(f"s{os.getpid()}") as hosts:
        where = ("launch=nodes", f"launch.rendezvous={NAMES[0]}")
        together = run_dir_of([each.end() for each in [node(*words, *where, host=name) for name in hosts]])
    alone = runner(*words, "hardware.processes=2").run_dir
    assert losses(together) == losses(alone)


@needs_root
def test_a_directory_that_is_not_shared_is_refused(pair: Pair, node: StartNode, project: Path) -> None:
    where = ("launch=nodes", f"launch.rendezvous=127.0.0.1:{free_port()}", "launch.join_s=5", "strategy=ddp")
    hidden = project / "outputs"
    hidden.mkdir()
    nodes = [
        node("train", "points", *where, "launch.node_rank=0"),
        node("train", "points", *where, "launch.node_rank=1", hidden=str(hidden)),
    ]
    for each in nodes:
        code, _, stderr = each.end()
        assert code == 9
        assert re.search(
            r"node 1 \(.*\) does not see .*/spec\.yaml, which node 0 wrote\. All nodes need the same", stderr
        )


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        ([], "launch.rendezvous: null leaves the nodes no place to meet. Set it to the host of node 0"),
        (["launch.rendezvous='a:b'"], "launch.rendezvous: 'a:b' must be the host of node 0, or host:port"),
        (["launch.rendezvous='a:70000'"], "launch.rendezvous: 'a:70000' must be the host of node 0, or host:port"),
        (["launch.hostfile=none"], "launch.hostfile: none cannot be read: "),
        (["launch.hostfile=hosts"], "launch.nodes: hosts names 3 hosts, but launch.nodes=2. Make them the same."),
        (
            ["launch.hostfile=hosts", "launch.nodes=3", "hardware.processes=2"],
            "hardware.processes: 2 processes on each node are too many: hosts gives a slots=1.",
        ),
        (["launch.hostfile=twice"], "launch.hostfile: twice lists a twice. Give each host one line"),
        (["launch.hostfile=empty"], "launch.hostfile: empty lists no host. Give one host per line."),
        (["launch.hostfile=odd"], "launch.hostfile: odd, line 2: 'b gpus=3' must be a host, or a host and slots=n."),
        (["launch.rendezvous=a", "launch.node_rank=2"], "node_rank=2 must be from 0 to 1: there are 2."),
        (["launch.rendezvous=a", "launch.nodes=0"], "nodes=0 must be at least 1."),
        (["launch.rendezvous=a", "launch.join_s=0"], "join_s=0.0 must be above 0."),
        (["launch.rendezvous=a", "strategy=single"], "strategy: single runs in one process, but the recipe asks for hardware.processes=1 on launch.nodes=2"),  # noqa: E501
        (["launch.rendezvous=a", "batch.items=3", "batch.micro_items=3"], "batch.items: 3"),
    ],
)  # fmt: skip
def test_faults_are_reported_before_launch(
    runner: Callable[..., Any], project: Path, overrides: list[str], fault: str
) -> None:
    (project / "hosts").write_text("a slots=1\nb slots=2\nc\n")
    (project / "twice").write_text("a\nb\na\n")
    (project / "empty").write_text("# nobody\n")
    (project / "odd").write_text("a slots=2\nb gpus=3\n")
    assert fault in runner("check", "points", "strategy=ddp", "launch=nodes", *overrides, code=REFUSED).stderr


def test_a_sweep_is_not_spread_over_nodes(runner: Callable[..., Any]) -> None:
    where = ("launch=nodes", "launch.rendezvous=127.0.0.1", "strategy=ddp")
    told = runner("train", "points", "-m", *where, "optimizer.lr=0.1,0.2", code=1).stderr
    assert told.count("launch.nodes: a sweep (-m) runs its jobs on one machine, not on 2.") == 2
