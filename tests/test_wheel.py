"""What people install: a wheel that holds everything, in an environment that knows no checkout.

docs/ and the README are run from it, too: tests/docs/test_commands.py.
"""

import zipfile
from pathlib import Path

import pytest

from scripts.check_wheel import differences
from tests.installed import CHECKOUT, Installed


@pytest.mark.timeout(300)  # it may be the one that builds the wheel
def test_the_wheel_has_what_it_must_have_and_nothing_else(installed: Installed) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    assert {"runner/py.typed", "runner/_shipped/conf/base.yaml", "runner/_shipped/recipes/digits.yaml"} <= set(names)
    assert differences(installed.wheel, CHECKOUT) == []


def test_a_file_too_few_and_a_file_too_many_are_named(tmp_path: Path) -> None:
    for name in ("runner/__init__.py", "conf/base.yaml", "recipes/one.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    wheel = tmp_path / "hydra_runner-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"):
            file.writestr(f"hydra_runner-1.0.dist-info/{name}", "")
        for name in ("runner/__init__.py", "runner/_shipped/conf/base.yaml", "tests/test_one.py"):
            file.writestr(name, "")
    assert differences(wheel, tmp_path) == [
        "missing: runner/_shipped/recipes/one.yaml",
        "must not be there: tests/test_one.py",
    ]


@pytest.mark.timeout(300)
def test_a_users_hooks_do_not_hide_those_of_the_wheel(installed: Installed, tmp_path: Path) -> None:
    assert '"missing"' not in installed.run("runner", "env", "--json", cwd=tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("# Mine.\ndefaults: [digits, _self_]\nname: mine\n")
    (tmp_path / "user_hooks").mkdir()
    (tmp_path / "user_hooks" / "other.py").write_text("")
    mine = Path(installed.run("runner", "train", "mine", "run.steps=2", cwd=tmp_path).splitlines()[-1])
    assert mine.parent.parent == tmp_path / "outputs" / "mine"
