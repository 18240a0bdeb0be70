"""DeepSpeed's configuration: what is generated, what a user may add, and words for what is said twice."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from runner.config import store
from runner.errors import ModelError
from runner.precision.bf16 import BF16
from runner.precision.fp32 import FP32
from runner.protocols import Clip
from runner.strategy.deepspeed import DeepSpeed
from runner.strategy.deepspeed.check import config_faults
from runner.strategy.deepspeed.config import (
    ZERO,
    drop_auto,
    fill_hidden_size_keys,
    flatten,
    merge_sources,
    run_entries,
    unflatten,
    user_entries,
)
from tests.conftest import Ended, Zygote

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed")
# The template of Accelerate's documentation, stage 3 with offload.
TEMPLATE = {
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "sub_group_size": 1e9,
        "stage3_gather_16bit_weights_on_model_save": "auto",
    },
    "gradient_accumulation_steps": 1,
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}


def model_of(**config: Any) -> Any:
    model: Any = nn.Linear(1, 1)
    model.config = SimpleNamespace(**config)
    return model


def faults(runner: Callable[..., Ended], *overrides: Any) -> Any:
    """What `runner check` says of the recipe; it must find something."""
    ended = runner("check", "points", *overrides, code=2)
    return ended.stderr + ended.stdout


def test_sections_are_flattened_and_put_together_again() -> None:
    assert flatten(TEMPLATE)["optimizer.params.lr"] == "auto"
    assert unflatten(flatten(TEMPLATE)) == TEMPLATE


@pytest.mark.parametrize("config", [{"hidden_size": 10}, {"hidden_sizes": [4, 10, 6]}])
def test_auto_sizes_follow_the_hidden_size(config: Any) -> None:
    """The rules of Accelerate's documentation: h × h, int(0.9 × h × h), 10 × h."""
    merged = merge_sources([run_entries(FP32(), Clip()), user_entries(TEMPLATE, "")])
    filled = fill_hidden_size_keys(merged, model_of(**config))
    assert filled[ZERO + "reduce_bucket_size"] == 100
    assert filled[ZERO + "stage3_prefetch_bucket_size"] == 90
    assert filled[ZERO + "stage3_param_persistence_threshold"] == 100
    assert "auto" not in filled.values()
    assert "auto" not in drop_auto(merged).values()


@pytest.mark.parametrize("model", [nn.Linear(1, 1), model_of(width=3)])
def test_auto_sizes_of_a_model_that_does_not_say_its_own(model: Any) -> None:
    merged = merge_sources([user_entries(TEMPLATE, "")])
    with pytest.raises(ModelError, match=r"has neither config.hidden_size nor config.hidden_sizes. Give numbers"):
        fill_hidden_size_keys(merged, model)


def test_what_is_set_elsewhere_fills_auto() -> None:
    merged = merge_sources([run_entries(BF16(), Clip(norm=0.5)), user_entries(TEMPLATE, "")])
    assert merged["bf16.enabled"] is True
    assert merged["gradient_clipping"] == 0.5
    assert merged["optimizer.type"] == "AdamW"
    assert "optimizer.params.lr" not in merged  # the groups of the recipe's optimizer carry it


def test_everything_said_twice_is_one_fault() -> None:
    file = {**TEMPLATE, "gradient_clipping": 1.0, "bf16": {"enabled": True}}
    fault, *others = config_faults([run_entries(FP32(), Clip(norm=0.5)), user_entries(file, "ds.json: ")])
    assert not others
    assert "gradient_clipping is 0.5 by clip.norm and 1.0 by ds.json: gradient_clipping" in fault.message
    assert "bf16.enabled is False by precision and True by ds.json: bf16.enabled" in fault.message
    assert "write auto in the other" in fault.message


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"scheduler": {"type": "WarmupLR"}}, "schedule._target_=deepspeed.runtime.lr_schedules"),
        (
            {"zero_optimization": {"sub_group_size": "auto"}},
            "auto cannot be filled in for zero_optimization.sub_group_size",
        ),
        ({"zero_optimization": True}, "must be a section"),
    ],
)
def test_sections_that_do_not_go(section: Any, words: str) -> None:
    (fault,) = config_faults([user_entries(section, "")])
    assert words in fault.message


@pytest.mark.parametrize("stage", [-1, 4])
def test_there_are_three_stages(stage: int) -> None:
    with pytest.raises(ValueError, match=f"stage={stage} must be 1, 2 or 3"):
        DeepSpeed(stage=stage)


def test_no_stage_is_ddp() -> None:
    with pytest.raises(ValueError, match="stage=0 partitions nothing, like strategy=ddp"):
        DeepSpeed(stage=0)


FP16_SECTION = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000}


@needs_deepspeed
def test_a_files_loss_scale_must_be_that_of_the_precision(runner: Callable[..., Ended], project: Path) -> None:
    """The numbers of Accelerate's documentation, beside torch's: the precision moves the scale, whoever asks for it."""
    (project / "ds.json").write_text(json.dumps({"fp16": {**FP16_SECTION, "hysteresis": 2, "min_loss_scale": 1}}))
    asked = ["strategy=deepspeed_zero2", "strategy.config_file=ds.json", "precision=fp16"]
    said = faults(runner, *asked)
    for line in (
        "fp16.loss_scale_window is 2000 by precision.growth_interval and 1000 by ds.json: fp16.loss_scale_window",
        "fp16.min_loss_scale is 0.001 by precision.min_scale and 1 by ds.json: fp16.min_loss_scale",
        "fp16.hysteresis is 1 by precision, whose scale shrinks at the first overflow and 2 by ds.json: fp16.hyst",
    ):
        assert line in said
    assert "initial_scale_power" not in said
    assert "fp16.loss_scale is" not in said
    (project / "ds.json").write_text(json.dumps({"fp16": {**FP16_SECTION, "hysteresis": "auto"}}))
    ended = runner("train", "points", *asked, "precision.growth_interval=1000", "run.steps=2")
    assert ended.metrics()[-2]["train/loss_scale"] == 65536


def test_a_file_that_contradicts_the_recipe_in_several_places(runner: Callable[..., Ended], project: Path) -> None:
    file = {
        "train_batch_size": 32,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.5}},
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 2e8},
    }
    (project / "ds.json").write_text(json.dumps(file))
    said = faults(
        runner, "strategy=deepspeed_zero2", "strategy.config_file=ds.json", "strategy.reduce_bucket_size=1000"
    )
    for line in (
        "train_batch_size is 12 by batch.items and 32 by ds.json: train_batch_size",
        "gradient_clipping is 0.0 by clip.norm and 1.0 by ds.json: gradient_clipping",
        "optimizer.params.lr is 0.001 by optimizer.lr and 0.5 by ds.json: optimizer.params.lr",
        "zero_optimization.stage is 2 by strategy.stage and 3 by ds.json: zero_optimization.stage",
        "zero_optimization.reduce_bucket_size is 1000 by strategy.reduce_bucket_size and 200000000.0 by ds.json",
    ):
        assert line in said, said


def test_a_file_is_judged_with_everything_else(runner: Callable[..., Ended], project: Path) -> None:
    """What is wrong with it is told with faults of other sections. What its rules say comes once these are right."""
    (project / "ds.json").write_text('{"zero_optimization": {"stage": 2, "stage": 2}, "a": 1, "a": 2}')
    common = ["strategy=deepspeed_zero2", "clip.norm=-1", "strategy.offload_param=cpu"]
    for name, words in (
        ("ds.json", "strategy.config_file: ds.json has duplicate keys: stage, a. Keep one of each."),
        ("absent.json", "strategy.config_file: absent.json cannot be read: No such file or directory. Give the path"),
    ):
        said = faults(runner, *common, f"strategy.config_file={name}")
        assert words in said, said
        assert "from the command line" in said.split(words)[1].splitlines()[1]
        assert "clip.norm: -1.0 must be above 0" in said, said
    assert "offload_param=cpu needs stage 3" in faults(runner, "strategy=deepspeed_zero2", "strategy.offload_param=cpu")


@needs_deepspeed
def test_a_run_keeps_its_file_though_it_is_deleted(
    runner: Callable[..., Ended], project: Path, zygote: Zygote, tmp_path: Path
) -> None:
    """The directory is enough, from any other one: the file's settings hold, and can be changed like any other."""
    file = project / "ds.json"
    file.write_text(json.dumps({"gradient_clipping": "auto", "note": "${HOME}", "zero_optimization": {"stage": 2}}))
    common = ["train", "points", "strategy=deepspeed_zero2", "clip.norm=0.3", "run.steps=4"]
    through = runner(*common)
    cut = runner(*common, "strategy.config_file=ds.json", "run.stop_at_step=2")
    file.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def resume(*overrides: Any) -> Any:
        argv = ["resume", str(cut.run_dir.path), *overrides]
        return zygote.start(argv, cwd=elsewhere, scratch=tmp_path, env={}).wait(120)

    refused = resume("strategy.reduce_bucket_size=5", "strategy.config_file.content.zero_optimization.stage=3")
    assert refused.code == 2
    assert "zero_optimization.stage is 2 by strategy.stage and 3 by ds.json: zero_optimization.stage" in refused.stderr
    ended = resume()
    assert ended.code == 0, ended.stderr
    assert ended.metrics() == through.metrics()
    specs = [store.load(path).config["strategy"]["config_file"] for path in ended.run_dir.specs()]
    assert len(specs) == 2
    assert all(one == {"path": "ds.json", "content": {**specs[0]["content"], "note": "${HOME}"}} for one in specs)
    assert resume("run.steps=5", "strategy.config_file=null").code == 0
    (elsewhere / "other.json").write_text('{"zero_optimization": {"stage": 1}}')
    assert "2 by strategy.stage and 1 by other.json" in resume("strategy.config_file=other.json").stderr


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["strategy=deepspeed_zero2", "strategy.offload_param=cpu"], "offload_param=cpu needs stage 3"),
        (
            ["strategy=deepspeed_zero1", "strategy.offload_optimizer=nvme"],
            "offload_optimizer=nvme needs stage 3, not 1",
        ),
        (["strategy=deepspeed_zero3", "strategy.offload_optimizer=nvme"], "nvme needs a directory on the disk"),
        (
            ["strategy=deepspeed_zero3", "strategy.offload_param=nvme", "strategy.param_nvme_path=/no/such/disk"],
            "/no/such/disk is not a directory",
        ),
        (["strategy=deepspeed_zero3", "strategy.param_nvme_path=/tmp"], "/tmp is only used with nvme"),
        (["strategy=deepspeed_zero3", "strategy.hpz_partition_size=2"], "2 does not divide the world size 1"),
        (["strategy=deepspeed_zero2", "strategy.quantized_weights=true"], "needs stage 3, not 2"),
        (
            ["strategy=deepspeed_zero3", "strategy.quantized_gradients=true", "hardware=cpu"],
            "its kernels need CUDA",
        ),
        (
            ["strategy=deepspeed_zero2", "strategy.offload_optimizer=cpu", "clip.value=1.0"],
            "DeepSpeed cannot do when the optimizer is offloaded",
        ),
        (
            ["strategy=deepspeed_zero2", "strategy.moe_leaf_modules=[Block]"],
            "strategy.moe_leaf_modules: ['Block'] is read by",
        ),
        (
            ["strategy=deepspeed_zero1", "strategy.zero_init=true"],
            "stage 1 does not read it. Use strategy=deepspeed_ze",
        ),
        (
            ["strategy=deepspeed_zero2", "strategy.max_live_parameters=0"],
            "max_live_parameters: 0 is read by stage 3, but",
        ),
        (
            ["strategy=deepspeed_zero3", "strategy.allgather_bucket_size=9"],
            "9 is read by stage 1 or 2, but stage 3 does not",
        ),
        (["strategy=deepspeed_zero3", "compile.what=model"], "Use compile.what=blocks"),
        (["strategy=deepspeed_zero2", "strategy.config_file=absent.json"], "absent.json cannot be read"),
        (["strategy=deepspeed_zero2", "strategy.stage=0"], "like strategy=ddp"),
    ],
)
def test_bad_settings_are_said_before_launch(runner: Callable[..., Ended], overrides: list[str], words: str) -> None:
    assert words in faults(runner, *overrides)
