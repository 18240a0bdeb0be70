"""Help is quick and complete; Hydra's own flags and its completion work behind `runner train`."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner import __version__


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["resume", "--help"],
        ["export", "--help"],
        ["check", "--help"],
        ["explain", "--help"],
        ["schema", "--help"],
        ["recipes"],
        ["tran"],
    ],
)
def test_help_imports_neither_torch_nor_hydra(
    command: Callable[..., subprocess.CompletedProcess[str]], argv: list[str]
) -> None:
    said = command(*argv, python=("-X", "importtime"))
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in said.stderr.splitlines()}
    assert said.returncode == (2 if argv == ["tran"] else 0)
    assert not imported & {"torch", "hydra", "omegaconf", "yaml"}


def test_help_shows_groups_with_the_users_options_too(runner: Callable[..., tuple[int, str, str]]) -> None:
    out = runner("train", "--help")[1]
    line = next(line for line in out.splitlines() if line.split()[:1] == ["strategy"])
    assert {"ddp", "single"} <= set(line.split())
    assert "noted" in out
    assert "--shell-completion" in out
    assert runner("--version")[1] == f"runner {__version__}\n"
    assert runner()[0] == 2


def test_cfg_prints_the_configuration_instead_of_running_it(
    runner: Callable[..., tuple[int, str, str]], project: Path
) -> None:
    code, out, _ = runner("train", "tiny", "--cfg", "job", "-p", "optimizer", "optimizer=sgd")
    assert code == 0
    assert "_target_: runner.optimizer.sgd.SGD" in out
    assert not (project / "outputs").exists()
    assert runner("train", "tiny", "+model.a=${name}", "--cfg", "job", "--resolve")[1].count("a: tiny") == 1
    code, _, err = runner("train", "tiny", "--cfg", "job", "optimizer=sdg", "a.b=1")
    assert code == 2
    assert "Did you mean sgd?" in err
    assert "a.b: there is no such key" in err


def test_info_shows_the_search_path(runner: Callable[..., tuple[int, str, str]], project: Path) -> None:
    out = runner("train", "tiny", "--info", "searchpath")[1]
    assert out.index(f"file://{project}/recipes") < out.index(f"file://{project}/conf")


def test_a_config_dir_adds_groups(runner: Callable[..., tuple[int, str, str]], project: Path) -> None:
    (project / "more" / "optimizer").mkdir(parents=True)
    (project / "more" / "optimizer" / "fast.yaml").write_text("_target_: runner.optimizer.sgd.SGD\nlr: 9.0\n")
    assert runner("train", "tiny", "-cd", "more", "optimizer=fast")[0] == 0
    assert "lr: 9.0" in runner("train", "tiny", "-cd", "more", "optimizer=fast", "--cfg", "job")[1]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("runner ", {"check", "explain", "export", "recipes", "resume", "schema", "train"}),
        ("runner tr", {"train"}),
        ("runner train ", {"tiny"}),
        ("runner train ti", {"tiny"}),
        ("runner train tiny strat", {"strategy="}),
        ("runner train tiny -m optimizer=", {"optimizer=adamw", "optimizer=sgd"}),
        ("runner train tiny optimizer=sgd optimizer.mom", {"optimizer.momentum="}),
        ("runner check tiny launch=no", {"launch=noted"}),
        ("runner resume ", set()),
    ],
)
def test_the_shell_completes_verbs_recipes_groups_options_and_keys(
    runner: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, line: str, expected: Any
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    code, out, _ = runner("-sc", "query=bash")
    assert code == 0
    assert expected <= set(out.split())
    assert expected or not out


def test_completion_installs_itself(runner: Callable[..., tuple[int, str, str]]) -> None:
    assert "hydra_bash_completion()" in runner("train", "--shell-completion", "install=bash")[1]
