"""Code of a recipe that is not the person's own runs only after they have accepted it, once for each digest."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Runner = Callable[..., tuple[int, str, str]]
MARKED = """\
from pathlib import Path
import {helper}
Path({marks!r}, "imported").touch()
def build_model(width): ...
def load_data(): ...
def loss(model, batch): ...
"""
RECIPE = """\
defaults: [base, override /launch: noted, _self_]
name: theirs
model: {{_target_: {module}.build_model, width: 4}}
data: {{_target_: {module}.load_data}}
loss: {{_target_: {module}.loss}}
batch: {{items: 4}}
run: {{steps: 3}}
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for kind in ("STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))
    return tmp_path


@pytest.fixture
def project(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, beside which strangers' files stand."""
    inner = project / "mine"
    inner.mkdir()
    for name in ("recipes", "conf", "cli_hooks.py"):
        (project / name).rename(inner / name)
    monkeypatch.chdir(inner)
    return inner


@pytest.fixture
def strange(home: Path, request: pytest.FixtureRequest) -> Path:
    """A recipe with hooks of a name that no other test imports."""
    path, module = home / "strange", f"strange_{abs(hash(request.node.name))}"
    (path / "recipes").mkdir(parents=True)
    (path / "recipes" / "theirs.yaml").write_text(RECIPE.format(module=module))
    (path / f"{module}_helper.py").write_text("")
    (path / f"{module}.py").write_text(MARKED.format(marks=str(home), helper=f"{module}_helper"))
    return path


def test_a_strangers_file_is_asked_about_once_and_again_when_it_changes(
    runner: Runner, project: Path, strange: Path, home: Path
) -> None:
    recipe = strange / "recipes" / "theirs.yaml"
    for argv in (["train", str(recipe)], ["train", str(recipe), "-m", "run.seed=1,2"]):
        code, out, err = runner(*argv)
        assert (code, out) == (2, "")
        assert f"RECIPE: {recipe} is not yours, and this account has not accepted it" in err
        assert ".build_model', 'strange_" in err
        assert f"'{strange}'" in err
        assert err.rstrip().endswith(f"accept the recipe, once: runner train {recipe} --trust")
    assert runner("check", str(recipe))[0] == runner("train", str(recipe), "--cfg", "job")[0] == 0
    assert not (home / "imported").exists()
    assert not (project / "outputs").exists()
    assert runner("train", str(recipe), "--trust")[0] == 0
    assert (home / "imported").exists()
    assert runner("train", str(recipe))[0] == 0
    (helper,) = strange.glob("*_helper.py")
    for path in (helper, recipe):
        path.write_text(path.read_text() + "# changed\n")
        assert "or it has changed since" in runner("train", str(recipe))[2]
        assert runner("train", str(recipe), "--trust")[0] == 0


def test_a_part_of_a_stranger_is_not_imported_before_either(
    runner: Runner, project: Path, strange: Path, home: Path
) -> None:
    """Parts are built, of which their modules are imported, before hooks are."""
    recipe = strange / "recipes" / "theirs.yaml"
    (module,) = {path.stem for path in strange.glob("strange_*.py") if "helper" not in path.stem}
    recipe.write_text(recipe.read_text() + f"callback: {{mine: {{_target_: {module}.Part}}}}\n")
    assert "is not yours" in runner("train", str(recipe))[2]
    assert not (home / "imported").exists()


def test_a_repository_is_accepted_by_commit(
    runner: Runner, project: Path, strange: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(strange), *identity, *words], check=True, timeout=60, capture_output=True)

    git("init", "--quiet", "--initial-branch=main")
    git("add", "-A")
    git("commit", "--quiet", "-m", "one")
    address = f"git+file://{strange}#recipes/theirs.yaml"
    code, out, err = runner("check", address)
    assert code == 0
    assert "is from a repository, so only the runner's own parts of it were imported and checked" in out
    assert runner("train", address, "--cfg", "job")[0] == 0
    err = runner("train", address)[2]
    assert "is not yours" in err
    assert "Its files: " in err
    assert not (home / "imported").exists()
    code, out, err = runner("train", address, "--trust")
    assert code == 0, err
    assert runner("train", address)[0] == 0
    assert (home / "imported").exists()
    assert f"recipe: git+file://{strange}@" in Path(out.splitlines()[-1], "spec.yaml").read_text()
    shutil.copytree(project / "conf", strange / "conf")
    shutil.copy(project / "cli_hooks.py", strange)
    monkeypatch.chdir(strange)
    assert runner("lock", "theirs")[0] == 0
    monkeypatch.chdir(project)
    git("add", "-A")
    git("commit", "--quiet", "-m", "locked")
    locked = f"git+file://{strange}#recipes/theirs.lock.yaml"
    assert "from which nothing differs" in runner("check", locked)[1]
    assert "is not yours" in runner("train", locked)[2]
    assert runner("train", locked, "--trust")[0] == runner("train", address)[0] == 0  # it is the commit that counts
    (strange / "unrelated.txt").write_text("x")  # another commit is another word
    git("add", "-A")
    git("commit", "--quiet", "-m", "two")
    assert "is not yours" in runner("train", address)[2]


def test_a_lock_of_a_strangers_recipe_is_asked_about_too(runner: Runner, project: Path, strange: Path) -> None:
    recipe = strange / "recipes" / "theirs.yaml"
    assert runner("lock", str(recipe), "--output", "theirs.lock.yaml")[0] == 0
    assert "is not yours" in runner("train", "theirs.lock.yaml")[2]
    assert runner("train", "theirs.lock.yaml", "--trust")[0] == 0
    assert runner("train", "theirs.lock.yaml")[0] == 0
    assert "a sweep (-m) varies values" in runner("train", "theirs.lock.yaml", "-m", "run.seed=1,2")[2]


def test_a_home_that_cannot_be_written_stops_no_training(
    runner: Runner, project: Path, strange: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "file"))
    code, _, err = runner("train", str(strange / "recipes" / "theirs.yaml"), "--trust")
    assert code == 0
    assert "this recipe is not remembered, so the next `runner train` will ask for --trust" in err
