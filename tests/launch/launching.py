"""Start launching processes, wait for them, and see that nothing of them is left."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from runner.config.run_dir import RunDir
from tests.conftest import CHECKOUT, Zygote

HERE = Path(__file__).parent


@final
class Launch:
    """A launching process in a session of its own, as a terminal would have it."""

    def __init__(
        self,
        path: Path,
        zygote: Zygote,
        *,
        processes: int,
        mode: str,
        at: int = 5,
        steps: int = 20,
        timeout_s: float = 1800,
        forks: bool = True,
        **options: Any,
    ) -> None:
        path.mkdir(exist_ok=True)
        self.run_dir = RunDir(path)
        if not self.run_dir.spec.exists():
            plan = {"mode": mode, "steps": steps, "at": at, "rank": processes - 1}
            self.run_dir.spec.write_text(json.dumps(plan))
        self._process = zygote.start(
            [str(self.run_dir.spec), str(processes), json.dumps(options)],
            cwd=HERE,
            scratch=path.parent,
            env={"PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(HERE)]), "TIMEOUT_S": str(timeout_s)},
            script=HERE / "launcher.py",
            forks=forks and not options.get("fork", True),
        )

    def wait_for_step(self, step: int) -> None:
        """Until status.json says so."""
        self.wait_until(lambda: self.run_dir.read_status()["step"] >= step, f"step {step}")

    def wait_for_trouble(self) -> None:
        """Until the rank that is to make trouble is at it."""
        self.wait_until((self.run_dir.path / "troubled").exists, "trouble")
        time.sleep(0.1)

    def interrupt_group(self) -> None:
        """Ctrl-C: the terminal sends SIGINT to the whole foreground group."""
        os.killpg(self._process.pid, signal.SIGINT)

    def send(self, number: signal.Signals) -> None:
        """To the launcher alone."""
        self._process.send_signal(number)

    def send_to_rank(self, rank: int, number: signal.Signals) -> None:
        """To one rank alone, the last one that started with this number."""
        newest = max(self.run_dir.path.glob(f"pid_{rank}_*"), key=lambda path: path.name)
        os.kill(int(newest.read_text()), number)

    def send_to_all(self, number: signal.Signals) -> None:
        """To the launcher and to every rank, as systemd and Slurm do."""
        for pid in {self._process.pid, *self.rank_pids()}:
            os.kill(pid, number)

    def end(self, timeout_s: float = 40) -> tuple[int, str, str]:
        """Exit code, stdout and stderr; fails, with the logs, if that takes too long."""
        if self._process.poll(timeout_s) is None:
            self.kill()
            logs = "\n".join(f"{path}:\n{path.read_text()}" for path in self.run_dir.logs.glob("*"))
            raise AssertionError(f"still running after {timeout_s} s\n{logs}")
        ended = self._process.wait(0)
        return ended.code, ended.stdout, ended.stderr

    def kill(self) -> None:
        """Leave nothing behind, whatever happened."""
        for pid in (self._process.pid, *self.rank_pids()):
            for end in (os.killpg, os.kill):
                try:
                    end(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def rank_pids(self) -> list[int]:
        """Of all ranks that ever started, in the order of their starts."""
        files = self.run_dir.path.glob("pid_*")
        return [int(path.read_text() or 0) for path in sorted(files, key=lambda path: path.name.rpartition("_")[2])]

    def alive(self) -> list[int]:
        """Ranks that still run."""
        return [pid for pid in self.rank_pids() if _runs(pid)]

    def is_running(self) -> bool:
        """Whether the launcher runs."""
        return self._process.poll() is None

    def wait_until_gone(self) -> None:
        """No rank runs."""
        self.wait_until(lambda: not self.alive(), "the end of all ranks", timeout_s=3)

    def wait_until(self, condition: Callable[[], object], what: str, timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"no {what} within {timeout_s} s; {self._process.poll()=}"
            time.sleep(0.02)


Launcher = Callable[..., Launch]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
