"""What a dotted path may lead to."""

import sys
from pathlib import Path

import pytest

from runner.config.imports import NO_FACTORIES, NotFound, locate

REFUSED = """
os.system posix.system subprocess.run subprocess.Popen builtins.eval builtins.exec shutil.rmtree importlib.import_module
runpy.run_path ctypes.CDLL pickle.loads socket.socket pty.spawn code.interact sys.exit yaml.unsafe_load operator.call
"""


@pytest.mark.parametrize("path", REFUSED.split())
def test_what_is_plainly_no_factory_is_refused(path: str) -> None:
    with pytest.raises(NotFound, match="are refused: nothing in it builds a part or data"):
        locate(path)


@pytest.mark.parametrize("module", ["pydoc", "webbrowser", "zipimport"])
def test_it_is_refused_before_it_is_imported(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module in NO_FACTORIES
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(NotFound, match="are refused"):
        locate(f"{module}.anything")
    assert module not in sys.modules


@pytest.mark.parametrize(
    "path",
    [
        "json.codecs.builtins.eval",
        "runner.durable.os.system",
        "glob.os.popen",
        "sly_names.run",
        "sly_names.Open",
        "sly_names.shell.system",
        "sly_names.Holder.call",
        "sly_names.join",
    ],
)
def test_other_names_for_it_are_refused(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["import os as shell", "from os import system as run, path", "from subprocess import Popen as Open"]
    lines += ["join = path.join", "class Holder:", "    call = staticmethod(eval)"]
    (tmp_path / "sly_names.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sly_names", raising=False)
    with pytest.raises(NotFound, match="are refused"):
        locate(path)


@pytest.mark.parametrize("path", ["json.__builtins__", "__main__.main", "json.loads.__globals__.get"])
def test_a_path_through_pythons_own_names_is_refused(path: str) -> None:
    with pytest.raises(NotFound, match=r"targets that lead through '__[a-z]+__' are refused"):
        locate(path)


@pytest.mark.parametrize(
    "path", ["json.loads", "collections.OrderedDict", "functools.partial", "pathlib.Path", "math.pi"]
)
def test_others_are_found(path: str) -> None:
    assert locate(path) is not None


def test_an_attribute_of_a_constant_is_told() -> None:
    with pytest.raises(NotFound, match=r"^math\.pi has no 'x'"):
        locate("math.pi.x")
