"""What tests of faults share: the command as a process of its own beside others, and disks small enough to fill.

The project, and the command as a quick fork of a prepared process, are those of tests/conftest.py.
"""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import final

import psutil
import pytest

from tests.conftest import CHECKOUT, Ended


@final
class Process:
    """A process in a session of its own, with all that it starts."""

    def __init__(self, argv: list[str], *, cwd: Path, scratch: Path, env: dict[str, str]) -> None:
        self.argv = argv
        self._files = [scratch / f"{name}_{time.time_ns()}" for name in ("stdout", "stderr")]
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self._process = subprocess.Popen(
                argv,
                cwd=cwd,
                stdout=out,
                stderr=err,
                env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", **env},
                start_new_session=True,
            )
        self.pid = self._process.pid

    def send(self, number: signal.Signals) -> None:
        """To this process alone."""
        self._process.send_signal(number)

    def wait_until(self, condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
        """Until it holds; fails if the process ends before."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            ended = self._process.poll()
            assert ended is None, f"{self.argv} ended with {ended} before {what}:\n{self.output()}"
            assert time.monotonic() < deadline, f"no {what} within {timeout_s} s:\n{self.output()}"
            time.sleep(0.01)

    def end(self, timeout_s: float = 60) -> Ended:
        """Its end; past the limit its whole tree is killed and its output shown."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill_tree()
            raise AssertionError(f"{self.argv} ran past {timeout_s} s:\n{self.output()}") from None
        return Ended(code, self._files[0].read_text(), self._files[1].read_text())

    def output(self) -> str:
        """What it has written."""
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in self._files)

    def kill_tree(self) -> None:
        """SIGKILL it and everything that it has started; returns once none of them is left."""
        try:
            tree = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            tree = []
        for one in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self._process.wait()
        psutil.wait_procs(tree, timeout=10)


@pytest.fixture
def process(project: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start `runner` as a process of its own, beside others: process("train", "points").end(timeout_s=60)."""
    started: list[Process] = []

    def start(*argv: str, env: dict[str, str] | None = None) -> Process:
        words = [sys.executable, "-m", "runner", *argv]
        started.append(Process(words, cwd=project, scratch=tmp_path, env=env or {}))
        return started[-1]

    yield start
    for one in started:
        one.kill_tree()


@final
class Disk:
    """A small file system of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, *, leave: int = 0) -> None:
        """Take the room that is left, to the last byte or down to so many bytes."""
        with (self.path / "filler").open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                while _fits(file, size):
                    pass
            if leave:
                os.ftruncate(file.fileno(), max(0, file.tell() - leave))

    def empty(self) -> None:
        """Give back what `fill` took."""
        (self.path / "filler").unlink()


def _fits(file: FileIO, size: int) -> bool:
    try:
        return file.write(bytes(size)) == size
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Disk]]:
    """Mount a file system of so many KiB: disk(4096). Skips the test where that is not permitted."""
    mounted: list[Path] = []

    def mount(kib: int) -> Disk:
        path = tmp_path / f"disk_{len(mounted)}"
        path.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(path)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
        mounted.append(path)
        return Disk(path)

    yield mount
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Disk]:
    """An ext4 file system in a file, mounted. Skips the test where that is not permitted."""
    image, path = tmp_path / "image", tmp_path / "ext4"
    path.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    for words in (["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(path)]):
        try:
            subprocess.run(words, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"an ext4 file system cannot be mounted here: {error}")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)
