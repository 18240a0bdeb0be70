"""A project of its own with one run in it, and what must hold of that run after any fault."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import final

import psutil

from runner.config.run_dir import RunDir
from runner.storage.history import History
from runner.storage.integrity import verify_everything
from tests.conftest import CHECKOUT, Ended, Started, Zygote


@final
class Directory:
    """A copy of tests/project whose run is in `run`, and the command in it."""

    def __init__(self, path: Path, zygote: Zygote) -> None:
        self.path = path / "project"
        self.run_dir = RunDir(self.path / "run")
        self._zygote = zygote
        self._scratch = path
        shutil.copytree(CHECKOUT / "tests" / "project", self.path, dirs_exist_ok=True)

    def leave(self, phase: str, call: int, *, code: int, rank: str) -> None:
        """Make a process leave in this phase; see tests/project/user_hooks/exiting.py."""
        told = {"phase": phase, "call": call, "rank": rank, "code": code}
        (self.path / "exit.json").write_text(json.dumps(told))

    def stay(self) -> None:
        """Make every hook harmless again."""
        (self.path / "exit.json").unlink()

    def start(self, *argv: str) -> Started:
        """The command, not waited for."""
        return self._zygote.start(list(argv), cwd=self.path, scratch=self._scratch, env={})

    def run(self, *argv: str, code: int = 0, timeout_s: float = 60) -> Ended:
        """The command; it must end with this code, and so must all that it has started."""
        ended = self.start(*argv).wait(timeout_s)
        assert ended.code == code, f"runner {' '.join(argv)} ended with {ended.code}, not {code}:\n{ended.stderr}"
        self.check_left()
        return ended

    def check_left(self, timeout_s: float = 10) -> None:
        """No process is left in it. The system may take a moment to end those of a killed one."""
        deadline = time.monotonic() + timeout_s
        while left := list(processes_in(self.path)):
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.05)

    def check_newest_commit(self) -> None:
        """It can be read to the last byte, if there is one."""
        if self.run_dir.checkpoints.exists():
            newest = History(self.run_dir.checkpoints).newest()
            assert newest is not None or not self.run_dir.committed_steps()
            if newest is not None:
                verify_everything(newest)

    def check_no_partial(self) -> None:
        """Nothing but committed checkpoints is there, and no file that is only kept while an attempt is under way."""
        names = {path.name for path in self.run_dir.checkpoints.iterdir()}
        assert names == {f"step_{step}" for step in self.run_dir.committed_steps()}
        left = [path for path in self.run_dir.path.rglob("*") if ".partial" in path.name or ".tmp" in path.name]
        assert not left
        assert not self.run_dir.reserve.exists()


def processes_in(directory: Path) -> Iterator[psutil.Process]:
    """Those that run there: of a command, its ranks and their workers, whoever their parent is by now."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()) == directory and process.status() != psutil.STATUS_ZOMBIE:
                yield process
