"""A recipe is packed, installed where nothing else of it is, and trained by its address."""

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ended

CHECKOUT = Path(__file__).parent.parent.parent
RECIPE = """\
# Points, "ours".
defaults: [common, override /optimizer: ours, _self_]
name: ours
version: 1.2.0
model: {_target_: user_hooks.ours.build_model}
"""
HOOKS = """\
from user_hooks.points import build_model as inner


def build_model():
    return inner(dropout=0.0)
"""


def run(*command: str, cwd: Path, code: int = 0) -> str:
    """Its output; fails with it."""
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    environment |= {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == code, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture
def project(project: Path) -> Path:
    recipes = project / "recipes"
    common = (recipes / "points.yaml").read_text().replace("name: points\n", "")
    (recipes / "common.yaml").write_text(common.replace("build_model\n  dropout: 0.0", "build_model"))
    (recipes / "ours.yaml").write_text(RECIPE)
    (project / "user_hooks" / "ours.py").write_text(HOOKS)
    (project / "conf" / "optimizer").mkdir(parents=True)
    (project / "conf" / "optimizer" / "ours.yaml").write_text("_target_: runner.optimizer.sgd.SGD\nlr: 0.125\n")
    return project


@pytest.mark.timeout(400)
def test_a_packed_recipe_is_installed_listed_checked_and_trained(
    runner: Callable[..., Ended], project: Path, tmp_path: Path
) -> None:
    (project / ".gitignore").write_text("*\n")  # no file may be left out for that
    ended = runner("pack", "ours", "--name", "team_recipes", "--output", "packed")
    assert ended.stdout.splitlines()[:5] == [
        "conf/optimizer/ours.yaml",
        "recipes/common.yaml",
        "recipes/ours.yaml",
        "user_hooks/ours.py",
        "user_hooks/points.py",
    ]
    packed = project / "packed"
    assert ended.stdout.splitlines()[-1] == str(packed)
    for name in ("recipes/ours.yaml", "user_hooks/points.py"):
        assert (packed / "team_recipes" / name).read_bytes() == (project / name).read_bytes()

    environment, empty = tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    venv.create(environment, with_pip=False)
    python = str(environment / "bin" / "python")
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=empty).strip())
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    run(*pip, "--no-index", "--no-build-isolation", "--no-deps", str(packed), cwd=empty)

    listed = next(
        line
        for line in run(python, "-m", "runner", "recipes", cwd=empty).splitlines()
        if line.startswith("pkg://team_recipes/ours")
    )
    assert listed.split(None, 4)[:4] == ["pkg://team_recipes/ours", "1.2.0", "team-recipes", "1.2.0"]
    checked = run(python, "-m", "runner", "check", "pkg://team_recipes/ours", cwd=empty)
    assert "  version      1.2.0\n  recipe       pkg://team_recipes/ours (team-recipes 1.2.0)\n" in checked
    assert "not checked" not in checked  # its hooks were imported: the person has installed them
    said = run(python, "-m", "runner", "train", "pkg://team_recipes/ours", "run.steps=2", "run.dir=run", cwd=empty)
    assert "step 2/2" in said
    spec = (empty / "run" / "spec.yaml").read_text()
    assert "recipe: pkg://team_recipes/ours" in spec
    assert "lr: 0.125" in spec
    assert '"recipe_version": "1.2.0"' in (empty / "run" / "provenance.json").read_text()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["ours", "run.steps=3"], "run.steps: a package holds the recipe's file as it is."),
        (["ours", "--name", "Team-Recipes"], "--name: 'Team-Recipes' is no name of a package"),
        (["ours", "--output", "recipes"], "recipes exists already. Remove it, or choose another directory"),
        (["ours", "--output", "/proc/packed"], "cannot be written"),
        (["nightly"], "version: 'nightly' is no version that pip orders, such as 1.2"),
        (["loose"], "version: 1.5 must be text: quote it, since YAML reads 1.10 as the number 1.1. version: '1.10'"),
    ],
)
def test_what_cannot_be_packed_says_why(
    runner: Callable[..., Ended], project: Path, argv: list[str], words: str
) -> None:
    (project / "recipes" / "nightly.yaml").write_text(RECIPE.replace("1.2.0", "nightly"))
    (project / "recipes" / "loose.yaml").write_text(RECIPE.replace("1.2.0", "1.5"))
    assert words in runner("pack", *argv, code=2).stderr


def test_a_recipe_without_a_version_gets_the_first_one_and_says_so(runner: Callable[..., Ended], project: Path) -> None:
    ended = runner("pack", "points")
    assert "version 0.1.0, since the recipe has none; needs hydra-runner>=" in ended.stdout
    assert 'name = "points-recipes"' in (project / "points-recipes" / "pyproject.toml").read_text()
