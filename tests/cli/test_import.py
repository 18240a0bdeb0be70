"""`runner import`: overrides on stdout, the report on stderr, or a recipe in a file."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

Runner = Callable[..., tuple[int, str, str]]
ACCELERATE = """\
distributed_type: FSDP
mixed_precision: bf16
num_processes: 2
gpu_ids: '0,1'
main_training_function: main
fsdp_config:
  fsdp_version: 2
  fsdp_offload_params: true
"""


@pytest.fixture
def file(project: Path) -> str:
    (project / "accelerate.yaml").write_text(ACCELERATE)
    return "accelerate.yaml"


def test_overrides_are_on_stdout_and_what_became_of_each_key_on_stderr(runner: Runner, file: str) -> None:
    code, out, err = runner("import", file)
    assert (code, out.split()) == (
        0,
        ["strategy=fsdp", "precision=bf16", "hardware.processes=2", "strategy.offload=true"],
    )
    assert err.splitlines() == [
        "accelerate.yaml, a configuration of Accelerate: 4 of 7 keys became settings",
        "  became:",
        "    distributed_type: FSDP                 strategy=fsdp",
        "    mixed_precision: bf16                  precision=bf16",
        "    num_processes: 2                       hardware.processes=2",
        "    fsdp_config.fsdp_offload_params: true  strategy.offload=true",
        "  needs no key:",
        "    main_training_function: main           a recipe names functions: model, data, loss",
        "    fsdp_config.fsdp_version: 2            always torch's fully_shard, the second version",
        "  is not there:",
        "    gpu_ids: 0,1                           set CUDA_VISIBLE_DEVICES=0,1 for the command",
    ]


def test_the_overrides_are_those_of_a_check(runner: Runner, file: str) -> None:
    _, out, _ = runner("import", file)
    code, said, _ = runner("check", "tiny", *out.split(), "launch=local", "hardware=cpu", "hardware.oversubscribe=true")
    assert code == 0, said
    assert "strategy     fsdp" in said


def test_a_recipe_is_written_in_which_the_hooks_are_to_be_named(runner: Runner, file: str, project: Path) -> None:
    code, out, err = runner("import", file, "--output", "recipes/mine.yaml")
    assert (code, out) == (0, "recipes/mine.yaml\n")
    assert "is not there:" in err
    text = (project / "recipes" / "mine.yaml").read_text()
    assert text.startswith("# The settings of accelerate.yaml, a configuration of Accelerate.")
    assert "#   gpu_ids: 0,1 | set CUDA_VISIBLE_DEVICES=0,1 for the command\n" in text
    code, _, err = runner("check", "mine")
    assert code == 2
    assert {"batch.items: must be given", "run.steps: must be given"} <= {
        line[:26].rstrip(".:") for line in err.splitlines()
    }
    filled = text.replace("batch:\n  items: ???", "batch: {items: 8}").replace("steps: ???", "steps: 2")
    for name, hook in (("model", "build_model"), ("data", "load_data"), ("loss", "loss")):
        filled = filled.replace(f"{name}:\n  _target_: ???", f"{name}: {{_target_: cli_hooks.{hook}}}")
    (project / "recipes" / "mine.yaml").write_text(filled)
    code, said, err = runner("check", "mine", "hardware=cpu", "hardware.oversubscribe=true")
    assert code == 0, err
    assert "precision    bf16" in said


def test_a_command_line_follows_two_dashes(runner: Runner) -> None:
    command = shlex.split("torchrun --nproc_per_node 2 train.py --output here -h --shell-completion")
    code, out, err = runner("import", "--", *command)
    assert (code, out.split()) == (0, ["strategy=ddp", "hardware.processes=2"])
    assert "train.py --output here -h --shell-completion" in err


def test_an_interpolation_in_a_strangers_file_stays_text(
    runner: Runner, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "secret-of-this-account")
    text = "distributed_type: FSDP\nfsdp_config: {fsdp_transformer_layer_cls_to_wrap: '${oc.env:TOKEN}'}\n"
    (project / "strange.yaml").write_text(text)
    _, out, _ = runner("import", "strange.yaml")
    _, said, err = runner("train", "tiny", *out.split(), "--cfg", "job", "--resolve", "-p", "blocks")
    assert "secret" not in said + err
    assert "${oc.env:TOKEN}" in said
    runner("import", "strange.yaml", "--output", "strange_recipe.yaml")
    _, said, err = runner("train", "strange_recipe.yaml", "--cfg", "job", "--resolve", "-p", "blocks")
    assert "secret" not in said + err
    assert "${oc.env:TOKEN}" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import"], "FILE: give a configuration file, or -- and the command line of a launcher."),
        (["import", "accelerate.yaml", "--", "torchrun", "t.py"], "FILE: give a configuration file, or --"),
        (["import", "nowhere.yaml"], "FILE: there is no file nowhere.yaml."),
        (["import", "accelerate.yaml", "--output", "recipes/tiny.yaml"], "--output: recipes/tiny.yaml exists."),
        (["import", "accelerate.yaml", "--output", "mine.json"], "--output: mine.json must end in .yaml"),
        (["import", "accelerate.yaml", "--output", "no/mine.yaml"], "--output: no is not a directory."),
    ],
)
def test_what_cannot_be_imported_is_told(runner: Runner, file: str, words: list[str], message: str) -> None:
    code, out, err = runner(*words)
    assert (code, out) == (2, "")
    assert err.startswith(message)
