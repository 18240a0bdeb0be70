"""The parameters of functions are read from their source, and nothing of it runs."""

from pathlib import Path

import pytest

from runner.config.source import Function, find_function

SOURCE = '''\
raise SystemExit("it ran")


def build(width, /, depth: int = 3, *, heads: "int | None" = None, **more):
    """Build it.

    Further.

    Args:
        depth: how many blocks
            there are.
        heads (int): of attention.
        more: the rest.

    Returns:
        width: a model.
    """


class Model:
    """A model."""

    def __init__(self, config, size=1):
        """Args:
        size: how large.
        """


class Inherits(Model):
    pass


@cache
def decorated(a): ...


def loss(model, batch, *, smoothing=0.0): ...
'''


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "one" / "package").mkdir(parents=True)
    (tmp_path / "one" / "package" / "hooks.py").write_text(SOURCE)
    (tmp_path / "one" / "package" / "broken.py").write_text("def build(:\n")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "flat.py").write_text("def build(a, b=(1, 2)): ...\n")
    return tmp_path


def find(root: Path, target: str, positional: int = 0) -> Function | None:
    return find_function(target, [str(root / "one"), str(root / "two")], positional=positional)


def test_parameters_have_type_default_and_meaning(root: Path) -> None:
    found = find(root, "package.hooks.build")
    assert found is not None
    assert (found.meaning, found.takes_more) == ("Build it.", True)
    assert [(one.name, one.type, one.default, one.meaning) for one in found.parameters] == [
        ("depth", "int", "3", "how many blocks there are."),
        ("heads", "'int | None'", "None", "of attention."),
    ]


def test_what_the_runner_passes_itself_is_left_out(root: Path) -> None:
    found = find(root, "package.hooks.loss", positional=2)
    assert found is not None
    assert [one.name for one in found.parameters] == ["smoothing"]


def test_a_class_takes_what_its_constructor_takes(root: Path) -> None:
    found = find(root, "package.hooks.Model")
    assert found is not None
    assert [(one.name, one.default) for one in found.parameters] == [("config", None), ("size", "1")]


def test_a_module_may_be_below_any_root(root: Path) -> None:
    found = find(root, "flat.build")
    assert found is not None
    assert [(one.name, one.default) for one in found.parameters] == [("a", None), ("b", "(1, 2)")]


@pytest.mark.parametrize(
    "target",
    [
        "package.hooks.Inherits",
        "package.hooks.decorated",
        "package.hooks.missing",
        "package.broken.build",
        "torch.nn.Linear",
        "build",
        "../one/package.hooks.build",
        "",
    ],
)
def test_what_the_text_does_not_say_is_not_guessed(root: Path, target: str) -> None:
    assert find(root, target) is None
