"""What people install: a wheel that holds everything, in an environment that knows no checkout."""

from pathlib import Path

import pytest

from tests.installed import Installed


@pytest.mark.timeout(600)
def test_an_installed_wheel_trains_in_an_empty_directory(installed: Installed, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "digits" in installed.run("runner", "recipes", cwd=empty)
    run_dir = Path(installed.run("runner", "train", "digits", "run.steps=60", cwd=empty).splitlines()[-1])
    assert run_dir.is_relative_to(empty)
    assert '"state": "done"' in (run_dir / "status.json").read_text()

    assert "wrote new/recipes/new.yaml" in installed.run("runner", "init", "new", "--yes", cwd=empty)
    assert installed.run("runner", "check", "new", cwd=empty / "new").endswith("nothing is wrong\n")
    program = (
        "import runner; print(runner.load_run(__import__('sys').argv[1]).outcome, runner.compose('new').run.steps)"
    )
    assert installed.run("python", "-c", program, str(run_dir), cwd=empty / "new") == "Outcome.DONE 200\n"
    assert '"missing"' not in installed.run("runner", "env", "--json", cwd=empty)

    (empty / "recipes").mkdir()
    (empty / "recipes" / "mine.yaml").write_text("# Mine.\ndefaults: [digits, _self_]\nname: mine\nmodel: {width: 8}\n")
    (empty / "user_hooks").mkdir()
    (empty / "user_hooks" / "other.py").write_text("")  # a user's own hooks do not hide those shipped
    mine = Path(installed.run("runner", "train", "mine", "run.steps=20", cwd=empty).splitlines()[-1])
    assert mine.parent.parent == empty / "outputs" / "mine"
