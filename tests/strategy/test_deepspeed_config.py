"""DeepSpeed's configuration: what is generated, what a user may add, and words for what is said twice."""

import json
from types import SimpleNamespace

import pytest
from torch import nn

from runner.errors import HookError
from runner.precision.bf16 import BF16
from runner.precision.fp32 import FP32
from runner.protocols import Clip
from runner.strategy.deepspeed import DeepSpeed
from runner.strategy.deepspeed_check import config_faults, read_json
from runner.strategy.deepspeed_config import ZERO, flat, join, nested, of_run, of_user, shaped, without_shape

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


def model_of(**config):
    model = nn.Linear(1, 1)
    model.config = SimpleNamespace(**config)
    return model


def faults(runner, *overrides):
    """What `runner check` says of the recipe; it must find something."""
    ended = runner("check", "points", *overrides, code=2)
    return ended.stderr + ended.stdout


def test_sections_are_flattened_and_put_together_again():
    assert flat(TEMPLATE)["optimizer.params.lr"] == "auto"
    assert nested(flat(TEMPLATE)) == TEMPLATE


@pytest.mark.parametrize("config", [{"hidden_size": 10}, {"hidden_sizes": [4, 10, 6]}])
def test_auto_sizes_follow_the_hidden_size(config):
    """The rules of Accelerate's documentation: h × h, int(0.9 × h × h), 10 × h."""
    joined = join([of_run(FP32(), Clip()), of_user(TEMPLATE, "")])
    filled = shaped(joined, model_of(**config))
    assert filled[ZERO + "reduce_bucket_size"] == 100
    assert filled[ZERO + "stage3_prefetch_bucket_size"] == 90
    assert filled[ZERO + "stage3_param_persistence_threshold"] == 100
    assert "auto" not in filled.values()
    assert "auto" not in without_shape(joined).values()


@pytest.mark.parametrize("model", [nn.Linear(1, 1), model_of(width=3)])
def test_auto_sizes_of_a_model_that_does_not_say_its_own(model):
    joined = join([of_user(TEMPLATE, "")])
    with pytest.raises(HookError, match=r"has neither config.hidden_size nor config.hidden_sizes. Give numbers"):
        shaped(joined, model)


def test_what_is_set_elsewhere_fills_auto():
    joined = join([of_run(BF16(), Clip(norm=0.5)), of_user(TEMPLATE, "")])
    assert joined["bf16.enabled"] is True
    assert joined["gradient_clipping"] == 0.5
    assert joined["optimizer.type"] == "AdamW"
    assert "optimizer.params.lr" not in joined  # the groups of the recipe's optimizer carry it


def test_everything_said_twice_is_one_fault():
    file = {**TEMPLATE, "gradient_clipping": 1.0, "bf16": {"enabled": True}}
    fault, *others = config_faults([of_run(FP32(), Clip(norm=0.5)), of_user(file, "ds.json: ")])
    assert not others
    assert "gradient_clipping is 0.5 by clip.norm and 1.0 by ds.json: gradient_clipping" in fault.message
    assert "bf16.enabled is False by precision and True by ds.json: bf16.enabled" in fault.message
    assert "write auto there" in fault.message


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"scheduler": {"type": "WarmupLR"}}, "schedule._target_=deepspeed.runtime.lr_schedules"),
        ({"zero_optimization": {"sub_group_size": "auto"}}, "anything fills for zero_optimization.sub_group_size"),
        ({"zero_optimization": True}, "must be a section"),
    ],
)
def test_sections_that_do_not_go(section, words):
    (fault,) = config_faults([of_user(section, "")])
    assert words in fault.message


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file or directory"):
        read_json(str(tmp_path / "absent.json"))
    (tmp_path / "half.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_json(str(tmp_path / "half.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list; a DeepSpeed configuration is a JSON object"):
        read_json(str(tmp_path / "list.json"))


@pytest.mark.parametrize("stage", [-1, 4])
def test_there_are_three_stages(stage):
    with pytest.raises(ValueError, match=f"stage={stage} must be 1, 2 or 3"):
        DeepSpeed(stage=stage)


def test_no_stage_is_ddp():
    with pytest.raises(ValueError, match="stage=0 cuts nothing: that is strategy=ddp"):
        DeepSpeed(stage=0)


def test_a_file_that_contradicts_the_recipe_in_several_places(runner, project):
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
            "/no/such/disk is no directory",
        ),
        (["strategy=deepspeed_zero3", "strategy.param_nvme_path=/tmp"], "/tmp is used with nvme only"),
        (["strategy=deepspeed_zero3", "strategy.hpz_partition_size=2"], "2 does not divide hardware.processes=1"),
        (["strategy=deepspeed_zero2", "strategy.quantized_weights=true"], "needs stage 3, not 2"),
        (
            ["strategy=deepspeed_zero3", "strategy.quantized_gradients=true", "hardware=cpu"],
            "its kernels are for CUDA",
        ),
        (
            ["strategy=deepspeed_zero2", "strategy.offload_optimizer=cpu", "clip.value=1.0"],
            "DeepSpeed does not where the optimizer is offloaded",
        ),
        (["strategy=deepspeed_zero3", "compile.what=model"], "Use compile.what=blocks"),
        (["strategy=deepspeed_zero2", "strategy.config_file=absent.json"], "absent.json cannot be read"),
        (["strategy=deepspeed_zero2", "strategy.stage=0"], "that is strategy=ddp"),
    ],
)
def test_bad_settings_are_said_before_launch(runner, overrides, words):
    assert words in faults(runner, *overrides)
