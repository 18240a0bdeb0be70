"""The modules that targets lead to are found as Python would import them, and nothing is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from runner.sharing.modules import modules_of, targets_in

FILES = {
    "one/hooks/model.py": "import torch, json\nfrom hooks.layers import f\nfrom . import beside\nraise SystemExit\n",
    "one/hooks/layers.py": "def f():\n    import numpy.linalg\n    from kit.deep.inner import thing\n",
    "one/hooks/beside.py": "from .layers import *\n",
    "two/hooks/model.py": "hidden = 1\n",
    "two/hooks/other.py": "from __future__ import annotations\nimport model_free\n",
    "two/kit/__init__.py": "from kit import version\n",
    "two/kit/version.py": "",
    "two/kit/deep/__init__.py": "",
    "two/kit/deep/inner.py": "from ..version import text\nimport sklearn.svm\n",
    "two/runner/x.py": "",
    "two/broken.py": "def (:\n",
}
ASK = """
import sys
sys.path[:0] = {roots!r}
for name in {names!r}:
    __import__(name)
here = {roots!r}
print(sorted(m.__file__ for m in sys.modules.values() if str(getattr(m, "__file__", "")).startswith(tuple(here))))
"""


@pytest.fixture
def roots(tmp_path: Path) -> list[str]:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return [str(tmp_path / "one"), str(tmp_path / "two")]


def names(files: list[Path], roots: list[str]) -> set[str]:
    return {str(file.relative_to(Path(roots[0]).parent)) for file in files}


def test_imports_are_followed_and_the_first_root_wins(roots: list[str]) -> None:
    found = modules_of(["hooks.model.build_model"], roots)
    assert names(found.files, roots) == {
        "one/hooks/model.py",
        "one/hooks/layers.py",
        "one/hooks/beside.py",
        "two/kit/__init__.py",
        "two/kit/version.py",
        "two/kit/deep/__init__.py",
        "two/kit/deep/inner.py",
    }
    assert found.packages == ["torch", "numpy", "sklearn"]  # json is Python's own


def test_a_folder_without_init_is_one_package_over_all_roots(roots: list[str]) -> None:
    found = modules_of(["hooks.other.f", "runner.x.y", "elsewhere.a.b"], roots)
    assert names(found.files, roots) == {"two/hooks/other.py"}
    assert found.packages == ["elsewhere", "model_free"]


def test_what_cannot_be_parsed_is_found_all_the_same(roots: list[str]) -> None:
    assert names(modules_of(["broken.f"], roots).files, roots) == {"two/broken.py"}


def test_python_imports_the_same_files(roots: list[str], tmp_path: Path) -> None:
    (tmp_path / "one" / "hooks" / "model.py").write_text("from hooks.layers import f\nfrom . import beside\n")
    (tmp_path / "one" / "hooks" / "layers.py").write_text("import kit.deep\ndef f(): ...\n")
    asked = [sys.executable, "-c", ASK.format(roots=roots, names=["hooks.model"])]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout
    assert str(sorted(map(str, modules_of(["hooks.model.f"], roots).files))) == said.strip()


def test_targets_are_found_wherever_they_stand() -> None:
    shared = {"_target_": "a.b"}
    config = {
        "model": {"_target_": "m.n", "inner": [shared, shared, {"deep": {"_target_": "c.d"}}]},
        "optimizer": {"_target_": "runner.optimizer.foreign.ForeignOptimizer", "target": "theirs.Lion"},
        "data": {"target": "not one"},
    }
    assert targets_in(config) == ["m.n", "a.b", "c.d", "runner.optimizer.foreign.ForeignOptimizer", "theirs.Lion"]
