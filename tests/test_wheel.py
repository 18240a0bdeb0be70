"""What people install: a wheel that holds everything, in an environment that knows no checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent


def run(*command: str, cwd: Path) -> str:
    """Its output; fails with it."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(600)
def test_an_installed_wheel_trains_in_an_empty_directory(tmp_path: Path) -> None:
    """The libraries come from this environment by path, which brings no editable install along; the runner does not."""
    wheels, environment, empty = tmp_path / "wheels", tmp_path / "environment", tmp_path / "empty"
    run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(CHECKOUT), cwd=tmp_path
    )
    (wheel,) = wheels.glob("hydra_runner-*.whl")
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    site = Path(run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        str(wheel),
        cwd=tmp_path,
    )
    command = str(environment / "bin" / "runner")
    empty.mkdir()

    where = run(str(python), "-c", "import runner; print(runner.__file__)", cwd=empty)
    assert where.startswith(str(environment)), "the wheel's own runner, not the checkout's"
    assert "digits" in run(command, "recipes", cwd=empty)
    run_dir = Path(run(command, "train", "digits", "run.steps=60", cwd=empty).splitlines()[-1])
    assert run_dir.is_relative_to(empty)
    assert '"state": "done"' in (run_dir / "status.json").read_text()

    assert "wrote new/recipes/new.yaml" in run(command, "init", "new", "--yes", cwd=empty)
    assert run(command, "check", "new", cwd=empty / "new").endswith("nothing is wrong\n")
    program = (
        "import runner; print(runner.load_run(__import__('sys').argv[1]).outcome, runner.compose('new').run.steps)"
    )
    assert run(str(python), "-c", program, str(run_dir), cwd=empty / "new") == "Outcome.DONE 200\n"
    assert '"missing"' not in run(command, "env", "--json", cwd=empty)

    (empty / "recipes").mkdir()
    (empty / "recipes" / "mine.yaml").write_text("# Mine.\ndefaults: [digits, _self_]\nname: mine\nmodel: {width: 8}\n")
    (empty / "user_hooks").mkdir()
    (empty / "user_hooks" / "other.py").write_text("")  # a user's own hooks do not hide those shipped
    mine = Path(run(command, "train", "mine", "run.steps=20", cwd=empty).splitlines()[-1])
    assert mine.parent.parent == empty / "outputs" / "mine"
