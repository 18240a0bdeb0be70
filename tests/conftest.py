"""What tests of whole runs share: the command, bounded in time, and a small project to run it in."""

import contextlib
import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from runner.config.run_dir import RunDir
from tests.installed import Installed, install_once

CHECKOUT = Path(__file__).parent.parent
DEEPSPEED = (
    "runner.strategy.deepspeed.engine", "runner.strategy.deepspeed.trainable", "deepspeed", "deepspeed.comm.mori",
    "deepspeed.module_inject.auto_ep_layer", "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.runtime.zero.stage3", "setuptools._distutils.core",
    "torch._subclasses.schema_check_mode",
)  # fmt: skip
"""What ranks of DeepSpeed import: 2 s of CPU."""
LIBRARIES = ("torch._inductor.compile_fx", "sklearn.datasets", "torchmetrics")
"""What ranks of compiled models import, of digits, and of those with metrics: 1.5, 1.5 and 1.9 s of CPU."""
LIBRARIES_OF = {
    ("gpt2", "bert"): ("transformers.models.gpt2.modeling_gpt2", "transformers.models.bert.modeling_bert", *LIBRARIES),
    ("deepspeed", "digits", "compile.", "metric=", "metric: [", "torchmetrics"): (*LIBRARIES, *DEEPSPEED),
}
"""What the process has imported that forks commands with such a word. Forks of one that is smaller are faster."""


def prepared_for(argv: Sequence[str], cwd: Path) -> str:
    """The first word of LIBRARIES_OF that the command, its recipe or its run has stands for that process."""
    text = " ".join(argv)
    for word in argv[1:2]:
        for path in (cwd / "recipes" / f"{word}.yaml", cwd / word, cwd / word / "spec.yaml"):
            with contextlib.suppress(
                OSError, ValueError
            ):  # a word that is no name of a file, or a file that is no text
                text += path.read_text()
    return next((words[0] for words in LIBRARIES_OF if any(word in text for word in words)), "")


def pytest_configure() -> None:
    """Commands that tests start hear signals that a job in a shell's background ignores, and hands down."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
    # How long an example takes to draw or to run says how busy the machine is.
    slow = hypothesis.HealthCheck.too_slow
    hypothesis.settings.register_profile("runner", deadline=None, suppress_health_check=[slow])
    hypothesis.settings.load_profile("runner")


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def run_dir(self) -> RunDir:
        """Where the run is: the last line that `train` and `resume` print."""
        assert self.stdout.strip(), f"nothing on stdout; exit code {self.code}; stderr:\n{self.stderr}"
        return RunDir(Path(self.stdout.strip().splitlines()[-1]))

    def metrics(self, *, without: tuple[str, ...] = ("time_s",)) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without what no two runs share."""
        lines = [json.loads(line) for line in self.run_dir.metrics.read_text().splitlines()]
        return [{key: value for key, value in line.items() if key not in without} for line in lines]


class Started:
    """A command under way."""

    def __init__(self, argv: list[str], connection: socket.socket, stdout: Path, stderr: Path) -> None:
        self.argv = argv
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None
        self._connection = connection
        self.pid: int = self._answer()["pid"]

    def send_signal(self, number: signal.Signals) -> None:
        """To it alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL it and its session. Its ranks have sessions of their own and die with it (PR_SET_PDEATHSIG)."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)

    def poll(self, timeout_s: float = 0) -> int | None:
        """Its exit code; None = it has not ended within this time."""
        if self.returncode is None and select.select([self._connection], [], [], timeout_s)[0]:
            self.returncode = self._answer()["code"]
            self._connection.close()
        return self.returncode

    def wait(self, timeout_s: float) -> Ended:
        """Its end; past the timeout its whole tree is killed and its output shown."""
        struck = self.poll(timeout_s) is None
        if struck:
            self.kill()
            self.poll(30)
        assert self.returncode is not None
        ended = Ended(self.returncode, self.stdout.read_text(), self.stderr.read_text())
        assert not struck, f"{self.argv} ran past {timeout_s} s:\n{ended.stdout}\n{ended.stderr}"
        return ended

    def _answer(self) -> dict[str, int]:
        answer: dict[str, int] = json.loads(self._connection.recv(1 << 10))
        return answer


class Zygote:
    """Starts commands quickly, of the checkout or of an environment; see tests/zygote.py."""

    def __init__(
        self,
        python: str | Path = sys.executable,
        env: dict[str, str] | None = None,
        libraries: Sequence[str] = (),
    ) -> None:
        self.name = f"runner-tests-{os.getpid()}-{time.monotonic_ns()}"
        self._process = subprocess.Popen(
            [
                *(python, str(CHECKOUT / "tests" / "zygote.py"), self.name, *libraries),
                *(f"{words[0]}={','.join(modules)}" for words, modules in LIBRARIES_OF.items()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**(env or os.environ | {"PYTHONPATH": str(CHECKOUT)}), "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout
        assert self._process.stdout.readline() == "ready\n"

    def start(
        self,
        argv: list[str],
        *,
        cwd: Path,
        scratch: Path,
        env: dict[str, str],
        script: Path | None = None,
        within: dict[str, str] | None = None,
        forks: bool = False,
        output: int | None = None,
    ) -> Started:
        """Start `runner` with these words, or this script with them. What it prints goes to files in `scratch`.

        Args:
            within: what it sees of the machine, as tests/zygote.py has it.
            forks: its new interpreters are forks, too, as tests/zygote.py has it.
            output: a descriptor that is its stdout and stderr instead.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        prepared = prepared_for(argv, cwd)
        connection.connect(f"\0{self.name}-{prepared}" if prepared else f"\0{self.name}")
        place = {"cwd": str(cwd), "env": env, "within": within, "forks": forks}
        asked = {"script": str(script) if script else None, "argv": argv, **place}
        started = time.monotonic_ns()
        stdout, stderr = (scratch / f"{name}_{started}" for name in ("stdout", "stderr"))
        with Path(os.devnull).open("rb") as nothing, stdout.open("wb") as out, stderr.open("wb") as err:
            descriptors = [nothing.fileno(), *((out.fileno(), err.fileno()) if output is None else (output, output))]
            socket.send_fds(connection, [json.dumps(asked).encode()], descriptors)
        return Started(argv, connection, stdout, stderr)

    def close(self) -> None:
        """No more commands."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("end\n")  # forks of this process, such as workers of a loader, keep the pipe open
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the command remembers for the account is kept out of the account's own directory."""
    path = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(path))
        patch.setenv("XDG_CACHE_HOME", str(path / "cache"))
        yield path


@pytest.fixture(scope="session")
def zygote(state_home: Path) -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, installed: one for all workers of a session."""
    own = tmp_path_factory.getbasetemp()
    return install_once(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty directory with a user's own recipe `points` and its hooks."""
    path = tmp_path / "project"
    shutil.copytree(CHECKOUT / "tests" / "project", path)
    return path


@pytest.fixture(scope="session")
def trained(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ended]:
    """A run with these words, made when first asked for: trained("train", "points"). Whoever changes it copies it."""

    @functools.cache
    def make(*argv: str) -> Ended:
        scratch = tmp_path_factory.mktemp("trained")
        project = shutil.copytree(CHECKOUT / "tests" / "project", scratch / "project")
        ended = zygote.start(list(argv), cwd=project, scratch=scratch, env={}).wait(timeout_s=90)
        assert ended.code == 0, f"runner {' '.join(argv)} ended with {ended.code}:\n{ended.stderr}"
        return ended

    return make


@pytest.fixture
def start(zygote: Zygote, project: Path, tmp_path: Path) -> Callable[..., Started]:
    """The command, not waited for: start("train", "points").wait(timeout_s=60). `forks` is that of Zygote.start."""

    def begin(*argv: str, env: dict[str, str] | None = None, forks: bool = False) -> Started:
        return zygote.start(list(argv), cwd=project, scratch=tmp_path, env=env or {}, forks=forks)

    return begin


@pytest.fixture
def runner(start: Callable[..., Started]) -> Callable[..., Ended]:
    """The command: runner("train", "points", "run.steps=3"). Fails the test unless it ends with `code`."""

    def run(*argv: str, code: int = 0, timeout_s: float = 60, **how: Any) -> Ended:
        ended = start(*argv, **how).wait(timeout_s)
        assert ended.code == code, f"runner {' '.join(argv)} ended with {ended.code}, not {code}:\n{ended.stderr}"
        return ended

    return run
