"""A lock file trains what it was locked to, and names everything that differs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.sharing import lock

Runner = Callable[..., tuple[int, str, str]]


def page(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


@pytest.fixture
def locked(runner: Runner, project: Path) -> Path:
    (project / "conf" / "optimizer").mkdir()
    (project / "conf" / "optimizer" / "mine.yaml").write_text("_target_: runner.optimizer.sgd.SGD\nlr: 0.25\n")
    (project / "cli_layers.py").write_text("import numpy\n")
    hooks = project / "cli_hooks.py"
    hooks.write_text("import cli_layers, torch\n" + hooks.read_text().replace("width=3", "width=3, tag=None"))
    code, out, err = runner("lock", "tiny", "optimizer=mine", "+model.tag=1e-3", "batch.items=32")
    assert (code, err) == (0, "")
    path = project / "recipes" / "tiny.lock.yaml"
    assert out.splitlines()[-1] == str(path)
    return path


@pytest.fixture(autouse=True)
def unloaded(project: Path) -> Any:
    yield
    sys.modules.pop("cli_layers", None)


def test_a_lock_holds_every_value_digest_and_version(locked: Path, project: Path) -> None:
    import hashlib

    import torch

    content = page(locked)
    what = content.pop("lock")
    assert content["optimizer"] == {"_target_": "runner.optimizer.sgd.SGD", "lr": 0.25}
    assert (content["batch"]["items"], content["run"]["seed"]) == (32, 0)
    assert what["recipe"] == "tiny.yaml"
    assert what["overrides"] == ["optimizer=mine", "+model.tag=1e-3", "batch.items=32"]
    assert {"recipes/tiny.yaml", "conf/optimizer/mine.yaml", "conf/launch/noted.yaml"} <= set(what["files"])
    assert {"runner: conf/base.yaml", "runner: conf/strategy/single.yaml"} <= set(what["files"])
    assert set(what["modules"]) == {"cli_hooks.py", "cli_layers.py"}
    digest = hashlib.sha256((project / "recipes" / "tiny.yaml").read_bytes()).hexdigest()
    assert what["files"]["recipes/tiny.yaml"] == digest
    assert what["packages"]["torch"] == torch.__version__
    assert what["packages"]["python"] == sys.version.split()[0]
    assert "hydra-runner" in what["packages"]


def test_a_lock_trains_exactly_its_values(runner: Runner, locked: Path) -> None:
    code, out, err = runner("check", str(locked))
    assert (code, err) == (0, "")
    assert f"  locked from  {locked.with_name('tiny.yaml')}, from which nothing differs" in out
    code, out, err = runner("train", "recipes/tiny.lock.yaml", "run.dir=trained")
    assert code == 0, err
    run = yaml.safe_load(Path(out.splitlines()[-1], "spec.yaml").read_text())
    was = page(locked)
    was.pop("lock")
    assert run["config"] == was | {"run": was["run"] | {"dir": "trained"}}
    assert run["source"]["recipe"] == str(locked)
    assert run["source"]["choices"]["optimizer"] == "mine"


def test_everything_that_differs_is_named_at_once(
    runner: Runner, locked: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "conf" / "optimizer" / "mine.yaml").write_text("_target_: runner.optimizer.sgd.SGD\nlr: 0.5\n")
    (project / "cli_layers.py").write_text("import numpy\nseven = 7\n")
    (project / "recipes" / "tiny.yaml").rename(project / "recipes" / "was.yaml")
    (project / "recipes" / "tiny.yaml").symlink_to(project / "recipes" / "was.yaml")
    monkeypatch.setattr(lock, "platform_name", lambda: "Plan9 mips")
    torch = page(locked)["lock"]["packages"]["torch"]
    locked.write_text(locked.read_text().replace(f"torch: {torch}", "torch: 0.9.0"))
    for verb in ("check", "train"):
        code, out, err = runner(verb, "tiny.lock", "optimizer.lr=3")
        assert (code, out) == (2, "")
        assert "lock.files: conf/optimizer/mine.yaml: sha256 " in err
        assert "lock.modules: cli_layers.py: sha256 " in err
        assert f"lock.packages: torch: 0.9.0 when it was locked, {torch} now." in err
        assert "lock.platform: it was locked with 'Linux x86_64', and this is 'Plan9 mips'." in err
        assert "optimizer.lr: is locked. Train the recipe itself, or lock it with that override." in err
        assert "or lock what there is now: runner lock" in err
        assert err.rstrip().endswith("optimizer=mine +model.tag=1e-3 batch.items=32")
    assert not (project / "outputs").exists()


def test_a_value_changed_by_hand_is_no_lock_any_more(runner: Runner, locked: Path) -> None:
    locked.write_text(locked.read_text().replace("lr: 0.25", "lr: 0.26"))
    line = locked.read_text().split("lr: 0.26")[0].count("\n") + 1
    said = runner("check", "tiny.lock")[2]
    assert "lock: values in the file have been changed since it was locked." in said
    assert "optimizer.lr: the file has 0.26, and its recipe gives 0.25." in said
    assert f"    from recipes/tiny.lock.yaml:{line}\n" in said
    assert said.count("its recipe gives") == 1


def test_a_file_that_is_gone_is_named(runner: Runner, locked: Path, project: Path) -> None:
    recipe = locked.with_name("tiny.yaml")
    recipe.rename(recipe.with_suffix(".moved"))
    said = runner("check", "tiny.lock")[2]
    assert said.startswith(
        f"lock.recipe: {recipe}, from which it was locked, is not there. Put it back, or lock another"
    )
    recipe.with_suffix(".moved").rename(recipe)
    (project / "conf" / "optimizer" / "mine.yaml").unlink()
    (project / "cli_layers.py").unlink()
    said = runner("check", "tiny.lock")[2]
    assert "conf/optimizer/mine.yaml: sha256 " in said
    assert said.count("when it was locked, not there now.") >= 2


def test_a_lock_elsewhere_still_belongs_to_its_recipe(runner: Runner, project: Path) -> None:
    (project / "locks").mkdir()
    assert runner("lock", "tiny", "--output", "locks/one.lock.yaml")[0] == 0
    assert page(project / "locks" / "one.lock.yaml")["lock"]["recipe"] == "../recipes/tiny.yaml"
    assert runner("check", "locks/one.lock.yaml")[0] == 0


def test_a_recipe_of_the_runner_is_locked_in_the_working_directory(runner: Runner, project: Path) -> None:
    code, out, err = runner("lock", "pydoc_lm", "run.steps=3")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == str(project / "pydoc_lm.lock.yaml")
    assert page(project / "pydoc_lm.lock.yaml")["lock"]["recipe"] == "pydoc_lm"
    assert runner("check", "pydoc_lm.lock.yaml")[0] == 0


def test_a_secret_is_not_in_the_lock(runner: Runner, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = project / "cli_hooks.py"
    hooks.write_text(hooks.read_text().replace("load_data()", "load_data(api_key, hf_token)"))
    monkeypatch.setenv("THE_KEY", "from-the-environment")
    given = ("launch=local", "+data.api_key=${oc.env:THE_KEY}", "+data.hf_token=typed-by-hand")
    code, out, err = runner("lock", "tiny", *given)
    assert code == 0, err
    text = (project / "recipes" / "tiny.lock.yaml").read_text()
    assert "from-the-environment" not in text + out
    assert "typed-by-hand" not in text + out
    code, out, err = runner("check", "tiny.lock")
    assert code == 2
    assert "data.hf_token: the value, from the command line, is a secret" in err
    assert runner("check", "tiny.lock", "data.hf_token=typed-by-hand")[0] == 0
    monkeypatch.delenv("THE_KEY")
    assert "THE_KEY" in runner("check", "tiny.lock", "data.hf_token=typed-by-hand")[2]


def test_what_is_no_lock_file_says_so(runner: Runner, locked: Path, project: Path) -> None:
    recipes = project / "recipes"
    assert "is a lock file. Lock the recipe that it was made from" in runner("lock", "tiny.lock")[2]
    assert "the name of a lock file ends in .lock.yaml" in runner("lock", "tiny", "--output", "a.yaml")[2]
    (recipes / "renamed.yaml").write_text(locked.read_text())
    assert "lock: the file is a lock file, whose name ends in .lock.yaml." in runner("check", "renamed")[2]
    (recipes / "of.lock.yaml").write_text(locked.read_text().replace("recipe: tiny.yaml", "recipe: of.lock.yaml"))
    assert "is a lock file, too. Lock a recipe" in runner("check", "of.lock")[2]
    (recipes / "empty.lock.yaml").write_text("name: x\n")
    assert "lock: the section is missing, or is nothing that `runner lock` writes" in runner("check", "empty.lock")[2]
    (recipes / "later.lock.yaml").write_text("lock: {format: 2}\n")
    assert "lock.format: its format is 2, and this version reads 1" in runner("check", "later.lock")[2]
    (recipes / "bent.lock.yaml").write_text(
        json.dumps(page(locked) | {"lock": page(locked)["lock"] | {"files": {"a": 1}}})
    )
    assert "lock: files in it is missing, or is nothing" in runner("check", "bent.lock")[2]


def test_a_recipe_with_faults_is_not_locked(runner: Runner, project: Path) -> None:
    code, _, err = runner("lock", "tiny", "batch.items=0", "strategy=none_such")
    assert code == 2
    assert "strategy: there is no option 'none_such'" in err
    assert not (project / "recipes" / "tiny.lock.yaml").exists()
    code, _, err = runner("lock", "tiny", "--output", "/proc/none/a.lock.yaml")
    assert code == 2
    assert "--output: /proc/none/a.lock.yaml cannot be written" in err
