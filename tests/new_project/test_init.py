"""`runner init` writes a project that is right, and overwrites nothing, whatever happens on the way."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from runner import compose
from runner.cli.main import main
from tests.conftest import CHECKOUT

ANSWERS = ["--name", "mine", "--processes", "1", "--strategy", "single", "--precision", "fp32", "--tracker", "none"]


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}


def of_project(name: str) -> set[str]:
    written = {f"recipes/{name}.yaml", f"user_hooks/{name}.py", f"tests/test_{name}.py"}
    return written | {"conf/hardware/this_machine.yaml", ".gitignore", "README.md"}


def test_the_project_is_right(empty: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own tests are run by docs/setup.md."""
    assert main(["init", "my-rings", "--yes"]) == 0
    assert "  cd my-rings\n  runner train my_rings\n" in capsys.readouterr().out
    assert files(empty) == {f"my-rings/{name}" for name in of_project("my_rings")}
    monkeypatch.chdir(empty / "my-rings")
    assert main(["check", "my_rings"]) == 0
    assert capsys.readouterr().out.endswith("nothing is wrong\n")
    assert main(["recipes"]) == 0
    assert "my_rings" in capsys.readouterr().out
    linted = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length", "120"]
    assert subprocess.run(linted, capture_output=True, timeout=60, check=False).returncode == 0


def test_answers_become_the_declaration(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["init", "there", "--yes", "--name", "pair", "--processes", "2", "--precision", "bf16"]
    assert main([*argv, "--tracker", "tensorboard"]) == 0
    monkeypatch.chdir(empty / "there")
    spec = compose("pair")
    assert (spec.world_size, list(spec.tracker)) == (2, ["tensorboard"])
    assert spec.config["strategy"]["_target_"].endswith(".DDP")
    assert spec.config["precision"]["_target_"].endswith(".BF16")


def test_an_empty_directory_with_a_repository_will_do(empty: Path) -> None:
    (empty / ".git").mkdir()
    assert main(["init", "--yes", "--name", "mine"]) == 0
    assert files(empty) == of_project("mine")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--yes", "--name", "not-a-name"], "--name: 'not-a-name' names a Python module, too: use letters"),
        (["--yes", "--name", "class"], "--name: 'class' names a Python module, too"),
        (["--yes", "--name", "base"], "--name: 'base' comes with the runner, and would be hidden."),
        (["--yes", "--name", "digits"], "--name: 'digits' comes with the runner, and would be hidden."),
        (["--yes", "--strategy", "fdsp"], "--strategy: there is no option 'fdsp'. Did you mean fsdp?"),
        (["--yes", "--processes", "0", "--tracker", "x"], "--processes: 0 must be at least 1.\n--tracker: there is no"),
        (["--yes", "--processes", "9999"], "hardware.processes: 9,999 processes, but this machine has "),
        (["--yes", "--processes", "2", "--strategy", "single"], "strategy: single runs in one process"),
        (["--yes", "--precision", "fp8_te"], "precision: fp8_te needs NVIDIA's TransformerEngine"),
    ],
)
def test_a_wrong_answer_is_told_and_nothing_is_written(
    empty: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    assert main(["init", "new", *argv]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "runner-init" not in said  # no name of a file that is gone
    assert list(empty.iterdir()) == []


def test_nothing_is_overwritten(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (empty / "full").mkdir()
    (empty / "full" / "README.md").write_text("mine")
    (empty / "file").write_text("mine")
    (empty / "link").symlink_to("nowhere")
    for name, words in {
        "full": "it has README.md. A project needs a directory that is new, or empty but for .git.",
        "file": "DIR: file is a file. Choose a new directory.",
        "link": "DIR: link is a link that leads nowhere. Choose a new directory.",
        "file/below": "/file is a file. Choose a new directory.",
    }.items():
        assert main(["init", name, "--yes", "--name", "mine"]) == 2
        assert words in capsys.readouterr().err
    assert files(empty) == {"full/README.md", "file", "link"}
    assert (empty / "full" / "README.md").read_text() == "mine"


def test_without_a_terminal_one_fault_says_what_to_give(
    empty: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert main(["init", "new", "--name", "mine"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("--yes: must be given, since stdin is no terminal on which to ask.")
    assert said.endswith(": --processes, --strategy, --precision, --tracker\n")
    assert list(empty.iterdir()) == []


@pytest.fixture
def on_terminal(empty: Path) -> Callable[[list[str], bytes], tuple[int, str]]:
    """Run `runner init` on a terminal, type something, and return its exit code and what it showed."""

    def run(argv: list[str], typed: bytes) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
        process = subprocess.Popen(
            [sys.executable, "-m", "runner", "init", *argv],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        shown = b""
        try:
            while b"]: " not in shown:
                shown += os.read(ours, 4096)
            if typed == b"\x03":
                wait_until_it_reads(process.pid)
                process.send_signal(signal.SIGINT)
            else:
                os.write(ours, typed)
            code = process.wait(timeout=120)
            while chunk := read(ours):
                shown += chunk
        finally:
            process.kill()
            process.wait()
            os.close(ours)
        return code, shown.decode()

    return run


def wait_until_it_reads(pid: int) -> None:
    """Python hears a signal that comes between the prompt and the wait for an answer only once it has the answer."""
    asleep = 0
    while asleep < 10:
        asleep = asleep + 1 if psutil.Process(pid).status() == psutil.STATUS_SLEEPING else 0
        time.sleep(0.02)


def read(descriptor: int) -> bytes:
    """What is left to read of a terminal whose other side is closed."""
    try:
        return os.read(descriptor, 4096)
    except OSError:
        return b""


def test_questions_are_asked_again_until_the_answer_can_be_right(
    empty: Path, on_terminal: Callable[[list[str], bytes], tuple[int, str]]
) -> None:
    code, shown = on_terminal(["new"], b"my rings\nrings\ntwo\n2\n\nfp33\n\nnone\n")
    assert code == 0, shown
    assert "'my rings' names a Python module, too" in shown
    assert "'two' must be a whole number." in shown
    assert "[ddp]: " in shown  # proposed for two processes
    assert "there is no option 'fp33'. Did you mean fp32?" in shown
    assert files(empty) == {f"new/{name}" for name in of_project("rings")}
    assert "processes: 2 " in (empty / "new" / "conf" / "hardware" / "this_machine.yaml").read_text()


@pytest.mark.parametrize("typed", [b"\x03", b"\x04"], ids=["interrupt", "end of input"])
def test_leaving_in_the_middle_leaves_nothing_behind(
    empty: Path, on_terminal: Callable[[list[str], bytes], tuple[int, str]], typed: bytes
) -> None:
    code, shown = on_terminal(["a/b", *ANSWERS[2:]], typed)
    assert (code, "interrupted" in shown) == (130, True)
    assert list(empty.iterdir()) == []
