"""What people install: the wheel, built once for a session of tests, in an environment that knows no checkout."""

import fcntl
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent
LEFT_OUT = ("PYTHONPATH", "VIRTUAL_ENV")
"""Variables of this process that would lead a command back to the checkout."""


@dataclass(frozen=True)
class Installed:
    """The environment and the wheel that was installed in it."""

    path: Path

    @property
    def wheel(self) -> Path:
        (wheel,) = (self.path / "wheels").glob("hydra_runner-*.whl")
        return wheel

    @property
    def bin(self) -> Path:
        """`runner`, `python` and `pytest`."""
        return self.path / "environment" / "bin"

    def variables(self) -> dict[str, str]:
        """The environment variables of a person who has activated it."""
        kept = {key: value for key, value in os.environ.items() if key not in LEFT_OUT}
        return kept | {"PATH": f"{self.bin}:{os.environ['PATH']}"}

    def run(self, *command: str, cwd: Path) -> str:
        """What the command prints on stdout; fails with all that it printed."""
        return _run(*command, cwd=cwd, env=self.variables())


def install_once(shared: Path) -> Installed:
    """Build the wheel and install it under `shared`, unless another process of the session has done it already."""
    installed = Installed(shared / "installed")
    with _alone(shared / "installed.lock"):
        if not installed.bin.joinpath("pytest").exists():
            _install(installed)
    return installed


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(installed: Installed) -> None:
    """The libraries come from this environment by path, which brings no editable install along; the runner does not."""
    wheels, environment = installed.path / "wheels", installed.path / "environment"
    wheels.mkdir(parents=True)
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(CHECKOUT))
    _run(*build, cwd=installed.path)
    venv.create(environment, with_pip=False)
    python = str(installed.bin / "python")
    site = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=wheels).strip())
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps")
    _run(*pip, str(installed.wheel), cwd=wheels)
    where = _run(python, "-c", "import runner; print(runner.__file__)", cwd=wheels)
    assert where.startswith(str(environment)), "the wheel's own runner, not the checkout's"
    shim = installed.bin / "pytest"
    shim.write_text(f'#!/bin/sh\nexec {python} -m pytest "$@"\n')
    shim.chmod(0o755)


def _run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    if env is None:
        env = {key: value for key, value in os.environ.items() if key not in LEFT_OUT}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
