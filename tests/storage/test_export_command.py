"""`runner export`: of any run's committed checkpoint, or a sentence about what is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, load_model

from runner.cli.main import main
from tests.conftest import Ended
from tests.parity.options import STRATEGIES, placed


@pytest.fixture
def trained(runner: Callable[..., Ended]) -> Any:
    """A run of the points recipe with commits at steps 2 and 3."""

    def train(*options: Any) -> Any:
        ended = runner("train", "points", "run.steps=3", "checkpoint.every_steps=2", *options)
        return ended.run_dir.path

    return train


def test_the_weights_of_every_strategy_are_those_of_one_process(runner: Callable[..., Ended], trained: Any) -> None:
    weights = {}
    for strategy in ["single", *STRATEGIES]:
        run = trained(*placed(strategy, 2))
        ended = runner("export", str(run))
        assert ended.stdout.splitlines() == ["model.safetensors  464 bytes", str(run / "export" / "step_3")]
        weights[strategy] = load_file(run / "export" / "step_3" / "model.safetensors")
        assert weights[strategy].keys() == {"0.weight", "0.bias", "3.weight", "3.bias"}
        for name, tensor in weights["single"].items():
            # fp32 sums in another order, through three steps of AdamW.
            torch.testing.assert_close(weights[strategy][name], tensor, rtol=0, atol=2e-6)


def test_any_program_loads_it_into_the_model_that_was_trained(
    runner: Callable[..., Ended], trained: Any, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained()
    runner("export", str(run), "--step", "2", "--dtype", "bfloat16", "--out", "weights/points")
    monkeypatch.syspath_prepend(project)
    from user_hooks.points import build_model

    model = build_model().bfloat16()
    missing, unexpected = load_model(model, project / "weights" / "points" / "model.safetensors")
    assert not missing
    assert not unexpected
    stored = load_file(run / "checkpoints" / "step_2" / "rank_0.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, stored[f"model.{name}"].bfloat16())


def test_sizes_are_read_as_people_write_them(runner: Callable[..., Ended], trained: Any) -> None:
    run = trained()
    for size, files in (("5GB", 1), ("0.1 KiB", 2), ("100", 2), ("1b", 4)):
        out = run / size
        runner("export", str(run), "--max-shard-size", size, "--out", str(out))
        assert len(list(out.glob("*.safetensors"))) == files, size
        assert (out / "model.safetensors.index.json").exists() == (files > 1)


@pytest.mark.parametrize("size", ["0", "-1GB", "five", "", "1PB", "0.1"])
def test_a_size_that_is_none_is_told(capsys: pytest.CaptureFixture[str], size: str) -> None:
    assert main(["export", "run", f"--max-shard-size={size}"]) == 2
    rule = f"command line: argument --max-shard-size: {size!r} is not a size such as 5GB, 500MB or 2GiB."
    assert rule in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "command line: the following arguments are required: DIR. See: runner export --help"),
        (["nowhere"], "DIR: nowhere is not a directory. `runner train` prints a run's directory as its last line."),
        (["recipes"], "DIR: recipes is not a run's directory: it has no spec.yaml."),
        (["x", "--step", "two"], "command line: argument --step: invalid int value: 'two'"),
        (["x", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
    ],
)
def test_what_cannot_be_exported_is_told(runner: Callable[..., Ended], argv: Any, words: str) -> None:
    ended = runner("export", *argv, code=2)
    assert words in ended.stderr


def test_a_step_that_was_not_committed_is_told(runner: Callable[..., Ended], trained: Any) -> None:
    run = trained()
    ended = runner("export", str(run), "--step", "1", code=2)
    assert ended.stderr == "--step: there is no checkpoint of step 1. There are: 2, 3.\n"


def test_a_run_without_a_checkpoint_is_told(runner: Callable[..., Ended]) -> None:
    ended = runner("train", "points", "run.steps=1", "checkpoint=none", "~checkpoint.every_steps")
    said = runner("export", str(ended.run_dir.path), code=2).stderr
    assert said.startswith(f"DIR: {ended.run_dir.path} has no committed checkpoint yet. A run commits by ")


def test_a_second_export_does_not_overwrite_the_first(runner: Callable[..., Ended], trained: Any) -> None:
    run = trained()
    runner("export", str(run))
    said = runner("export", str(run), code=8).stderr
    assert said == f"{run}/export/step_3 is not empty. Export into a new directory: --out PATH.\n"


def test_an_export_needs_no_hook(runner: Callable[..., Ended], trained: Any, project: Path) -> None:
    run = trained()
    (project / "user_hooks" / "points.py").unlink()
    ended = runner("export", str(run))
    assert ended.stdout.splitlines() == ["model.safetensors  464 bytes", str(run / "export" / "step_3")]


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"model": "A", "shapes": {}, "files": {"config.json": "{"}}'])
def test_a_damaged_configuration_of_the_model_is_told(runner: Callable[..., Ended], trained: Any, content: str) -> None:
    run = trained()
    (run / "model_config.json").write_text(content)
    said = runner("export", str(run), code=8).stderr
    assert f"{run}/model_config.json is not what training wrote (" in said
    assert "Export without it: --no-config." in said
    runner("export", str(run), "--no-config")


def test_help_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: runner export DIR [options]")


def test_an_index_is_json(runner: Callable[..., Ended], trained: Any) -> None:
    run = trained()
    runner("export", str(run), "--max-shard-size", "1")
    index = json.loads((run / "export" / "step_3" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * (2 * 8 + 8 + 8 * 2 + 2)
