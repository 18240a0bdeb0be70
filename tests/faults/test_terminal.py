"""Nothing about a terminal ends a run."""

import json
import os
import pty
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.config.run_dir import RunDir
from tests.conftest import Started, Zygote
from tests.faults.signals_tree import command

HOOK = """
from user_hooks.points import mean_loss


def loss(model, batch):
    print("the hook talks", flush=True)
    return mean_loss(model, batch)
"""
WORDS = ("train", "points", "run.dir=run", "run.steps=6", "eval.every_steps=3", "loss._target_=user_hooks.talks.loss")
PAIR = ("strategy=ddp", "hardware.processes=2")


@pytest.fixture(autouse=True)
def talking(project: Path) -> None:
    """A hook that prints."""
    (project / "user_hooks" / "talks.py").write_text(HOOK)


@pytest.fixture
def print_to(zygote: Zygote, project: Path, tmp_path: Path) -> Callable[..., Started]:
    """Start the console script with this descriptor as its stdout and stderr: print_to(descriptor, "train", …)."""
    script = tmp_path / "script.py"
    script.write_text("from runner.cli.main import run\nrun()\n")

    def start(output: int, *argv: str) -> Started:
        return zygote.start(list(argv), cwd=project, scratch=tmp_path, env={}, script=script, output=output)

    return start


def check_done(project: Path, code: int) -> str:
    """The run came to its end, whatever could be shown of it; returns the log of rank 0."""
    run_dir = RunDir(project / "run")
    assert (code, run_dir.read_status()["state"], run_dir.read_status()["step"]) == (0, "done", 6)
    steps = [json.loads(line)["step"] for line in run_dir.metrics.read_text().splitlines()]
    assert steps[-1] == 6
    assert not run_dir.failures.exists()
    return run_dir.rank_log(0).read_text()


@pytest.mark.fault(
    "the reader of the output is gone (head, a dead tee)", "training goes on; the log says once what is lost"
)
@pytest.mark.parametrize(
    "where",
    [
        pytest.param((), id="one"),
        pytest.param(PAIR, id="forked"),
        pytest.param((*PAIR, "launch.fork=false"), id="separate", marks=pytest.mark.exhaustive),
    ],
)
def test_a_reader_that_is_gone(project: Path, print_to: Callable[..., Started], where: tuple[str, ...]) -> None:
    """`runner train … 2>&1 | head -1`, and a `tee` that died."""
    read, write = os.pipe()
    run = print_to(write, *WORDS, *where)
    os.close(read)
    os.close(write)
    log = check_done(project, run.wait(60).code)
    assert log.count("cannot be written ([Errno 32] Broken pipe); the run goes on without it") in (1, 2)


@pytest.mark.fault("closed descriptors (`2>&-`)", "training goes on")
@pytest.mark.parametrize(
    "closed",
    [*(pytest.param(one, marks=pytest.mark.exhaustive) for one in ("2>&-", ">&-")), ">&- 2>&- <&-"],
)
@pytest.mark.parametrize("where", [(), PAIR], ids=["one", "two"])
def test_closed_descriptors(project: Path, closed: str, where: tuple[str, ...]) -> None:
    run = command(project, *WORDS, *where, before=["sh", "-c", f'exec "$@" {closed}', "-"])
    check_done(project, run.wait(60))
    for path in (project / "run").rglob("*"):
        assert not (path.is_file() and b"the hook talks" in path.read_bytes() and path.name != "rank_1.log"), path


@pytest.mark.fault("the terminal of a run that ignores SIGHUP (nohup) is closed", "training goes on")
def test_a_terminal_that_is_closed(project: Path) -> None:
    """Its processes keep running if they ignore SIGHUP, and their writes fail with EIO."""
    master, slave = pty.openpty()
    run = command(
        project, *WORDS, before=["sh", "-c", 'trap "" HUP; exec "$@"', "-"], stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    os.read(master, 10)
    os.close(master)
    assert "cannot be written ([Errno 5] Input/output error)" in check_done(project, run.wait(60))


@pytest.mark.fault("a full disk behind the output", "training goes on")
def test_a_full_disk_under_the_output(project: Path, print_to: Callable[..., Started]) -> None:
    with open("/dev/full", "w") as full:
        run = print_to(full.fileno(), *WORDS)
    assert "No space left on device" in check_done(project, run.wait(60).code)


@pytest.mark.fault("a full pipe behind the output", "training goes on")
def test_a_reader_that_does_not_read(project: Path, print_to: Callable[..., Started]) -> None:
    """The pipe is full before the run begins."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(write, True)
    run = print_to(write, *WORDS)
    os.close(write)
    assert "nobody has read it for 5 s" in check_done(project, run.wait(60).code)
    os.close(read)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_verb_that_only_prints_ends_with_its_reader(
    project: Path, monkeypatch: pytest.MonkeyPatch, unbuffered: str
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)  # else the pipe is written to when the command ends
    run = command(project, "recipes", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.stdout is not None
    run.stdout.close()
    _, stderr = run.communicate(timeout=60)
    assert (run.returncode, stderr) == (1, b"")
