"""A DeepSpeed JSON becomes overrides that a recipe accepts, and DeepSpeed's own keys are all known."""

import ast
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from runner.config.run_spec import RunSpec
from runner.errors import SpecError
from runner.migrate.deepspeed.read import TABLE, deepspeed_lines
from runner.migrate.read import read_file
from runner.migrate.translate import Migration

Spec = Callable[[Sequence[str]], RunSpec]
ZERO_3 = {"zero_optimization": {"stage": 3}}


def read(tmp_path: Path, content: Any) -> Migration:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content))
    return read_file(path)


def overrides(found: Migration) -> list[str]:
    return [str(setting) for setting in found.settings]


def missing(found: Migration) -> set[str]:
    return {line.argument.key for line in found.lines if line.outcome.is_missing}


CASES: dict[str, tuple[Any, str, str]] = {
    "all_auto": (
        {
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": 1,
            "gradient_clipping": "auto",
            "steps_per_print": 2000,
            "wall_clock_breakdown": False,
            "fp16": {"enabled": True, "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 12}
            | {"hysteresis": 2, "min_loss_scale": 1},
            "optimizer": {
                "type": "AdamW",
                "params": {"lr": "auto", "weight_decay": "auto", "torch_adam": True, "adam_w_mode": True},
            },
            "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": "auto", "total_num_steps": "auto"}},
            "zero_optimization": {
                "stage": 2,
                "offload_optimizer": {"device": "cpu", "pin_memory": True},
                "allgather_partitions": True,
                "allgather_bucket_size": 2e8,
                "overlap_comm": True,
                "reduce_scatter": True,
                "reduce_bucket_size": "auto",
                "contiguous_gradients": True,
            },
        },
        "strategy=deepspeed_zero2 precision=fp16 precision.growth_interval=1000 precision.init_scale=4096.0 "
        "precision.min_scale=1 optimizer=adamw schedule=linear strategy.offload_optimizer=cpu "
        "++strategy.config.zero_optimization.allgather_partitions=true strategy.allgather_bucket_size=200000000 "
        "strategy.overlap_comm=true ++strategy.config.zero_optimization.reduce_scatter=true "
        "strategy.contiguous_gradients=true ++strategy.config.wall_clock_breakdown=false",
        "fp16.hysteresis",
    ),
    "numbers": (
        {
            "train_batch_size": 32,
            "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": 8,
            "gradient_clipping": 0.3,
            "bf16": {"enabled": True},
            "optimizer": {"type": "Adam", "params": {"lr": 3e-5, "betas": [0.8, 0.95], "eps": 1e-7}},
            "zero_optimization": {
                "stage": 3,
                "stage3_prefetch_bucket_size": 1e7,
                "stage3_param_persistence_threshold": 1e4,
                "stage3_max_live_parameters": 1e8,
                "stage3_max_reuse_distance": 1e8,
                "sub_group_size": 1e8,
                "reduce_bucket_size": 1e6,
                "zero_hpz_partition_size": 1,
                "offload_param": {"device": "cpu", "pin_memory": False, "buffer_count": 5},
                "stage3_gather_16bit_weights_on_model_save": True,
            },
            "aio": {"block_size": 1048576},
            "tensorboard": {"enabled": True, "output_path": "here", "job_name": "job"},
            "wandb": {"enabled": True, "project": "mine", "team": "ours"},
            "csv_monitor": {"enabled": False},
        },
        "strategy=deepspeed_zero3 precision=bf16 batch.items=32 batch.micro_items=4 clip.norm=0.3 optimizer=adamw "
        "optimizer.weight_decay=0.0 optimizer.lr=3e-05 optimizer.betas=[0.8,0.95] optimizer.eps=1e-07 "
        "strategy.prefetch_bucket_size=10000000 strategy.param_persistence_threshold=10000 "
        "strategy.max_live_parameters=100000000 strategy.max_reuse_distance=100000000 "
        "strategy.sub_group_size=100000000 strategy.reduce_bucket_size=1000000 strategy.hpz_partition_size=1 "
        "strategy.offload_param=cpu strategy.pin_memory=false "
        "++strategy.config.zero_optimization.offload_param.buffer_count=5 ++strategy.config.aio.block_size=1048576 "
        "tracker=[tensorboard,wandb] tracker.wandb.project=mine tracker.wandb.entity=ours",
        "",
    ),
    "only_a_micro_batch": (
        {"train_micro_batch_size_per_gpu": 2, **ZERO_3},
        "strategy=deepspeed_zero3 batch.items=null batch.micro_items=2 batch.accumulate=1",
        "",
    ),
    "rounds": (
        {"gradient_accumulation_steps": 4, "gradient_clipping": 0, **ZERO_3},
        "strategy=deepspeed_zero3 batch.accumulate=4 clip.norm=null",
        "",
    ),
    "plain_adam": (
        {
            "optimizer": {"type": "Adam", "params": {"adam_w_mode": False, "weight_decay": 0.1, "amsgrad": True}},
            **ZERO_3,
        },
        "strategy=deepspeed_zero3 optimizer=adamw optimizer._target_=torch.optim.Adam optimizer.weight_decay=0.1",
        "optimizer.params.amsgrad",
    ),
    "an_optimizer_of_deepspeeds": (
        {"optimizer": {"type": "Lion", "params": {"lr": 1e-4}}, **ZERO_3},
        "strategy=deepspeed_zero3 strategy.own_optimizer=Lion optimizer.lr=0.0001",
        "",
    ),
    "sgd": (
        {"optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}}, **ZERO_3},
        "strategy=deepspeed_zero3 optimizer=sgd optimizer.lr=0.1 optimizer.momentum=0.9",
        "",
    ),
    "a_schedule_with_numbers": (
        {
            "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 0.01, "warmup_num_steps": 10}},
            **ZERO_3,
        },
        "strategy=deepspeed_zero3 schedule=cosine schedule._target_=deepspeed.runtime.lr_schedules.WarmupLR "
        "~schedule.warmup_steps ~schedule.warmup_start ~schedule.final_factor ++schedule.warmup_max_lr=0.01 "
        "++schedule.warmup_num_steps=10",
        "",
    ),
    "nothing_sharded": (
        {
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": 0, "overlap_comm": True},
            "aio": {"block_size": 1},
            "wall_clock_breakdown": True,
            "optimizer": {"type": "Lamb"},
        },
        "strategy=ddp precision=bf16",
        "optimizer.type",
    ),
    "what_is_not_there": (
        {
            "autotuning": {"enabled": True},
            "curriculum_learning": {"enabled": True, "params": {"min": 1}},
            "tensor_parallel": {"autotp_size": 2},
            "fp16": {"enabled": True, "loss_scale": 128},
            "optimizer": {"type": "OneBitAdam"},
            **ZERO_3,
        },
        "strategy=deepspeed_zero3 precision=fp16",
        "autotuning.enabled curriculum_learning.enabled curriculum_learning.params.min tensor_parallel.autotp_size "
        "fp16.loss_scale optimizer.type",
    ),
    "old_names": (
        {"zero_optimization": {"stage": 2, "cpu_offload": True, "stage3_gather_fp16_weights_on_model_save": True}},
        "strategy=deepspeed_zero2 strategy.offload_optimizer=cpu",
        "",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_becomes_overrides_that_a_recipe_accepts(tmp_path: Path, spec: Spec, case: str) -> None:
    content, expected, absent = CASES[case]
    found = read(tmp_path, content)
    assert sorted(overrides(found)) == sorted(expected.split())
    assert missing(found) == set(absent.split())
    spec(overrides(found))


def test_a_schedule_of_deepspeeds_is_its_own_class_with_the_numbers_of_the_file(tmp_path: Path, spec: Spec) -> None:
    found = read(tmp_path, CASES["a_schedule_with_numbers"][0])
    schedule: Any = spec(overrides(found)).schedule
    assert schedule.arguments == {"warmup_max_lr": 0.01, "warmup_num_steps": 10}


def test_every_field_of_deepspeeds_zero_section_has_a_rule() -> None:
    """Taken from the source of the installed library, which takes seconds to import."""
    located = importlib.util.find_spec("deepspeed")
    if located is None or located.origin is None:
        pytest.skip("DeepSpeed is not installed")
    folder = Path(located.origin).parent / "runtime" / "zero"
    fields = {
        (file, part.name): [ast.unparse(line.target) for line in part.body if isinstance(line, ast.AnnAssign)]
        for file in ("config.py", "offload_config.py")
        for part in ast.walk(ast.parse((folder / file).read_text()))
        if isinstance(part, ast.ClassDef)
    }
    renamed = {
        name: f"stage3_{name}"
        for name in ("prefetch_bucket_size", "param_persistence_threshold", "max_live_parameters")
    }
    renamed |= {
        name: f"stage3_{name}"
        for name in ("model_persistence_threshold", "max_reuse_distance", "gather_16bit_weights_on_model_save")
    }
    renamed |= {
        name: f"stage3_{name}"
        for name in ("module_granularity_threshold", "use_all_reduce_for_fetch_params", "allgather_sequential")
    }
    names = [renamed.get(name, name) for name in fields["config.py", "DeepSpeedZeroConfig"]]
    content: dict[str, Any] = dict.fromkeys(names, "auto")
    for section, part in (("optimizer", "Optimizer"), ("param", "Param")):
        inner = fields["offload_config.py", f"DeepSpeedZeroOffload{part}Config"]
        content[f"offload_{section}"] = dict.fromkeys(inner, "auto")
    content |= {"stage": 3, "zenflow": {"topk_ratio": "auto"}}
    assert len(content) > 40
    assert [fault.key for fault in deepspeed_lines({"zero_optimization": content}, {}, origin="").faults] == []


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage", "4 must be 0, 1, 2 or 3."),
        ({"zero_optimization": True}, "zero_optimization", "true must be a section of keys"),
        ({"train_batch_size": 2.5}, "train_batch_size", "2.5 must be a whole number."),
        ({"optimizer": {"type": "Adan"}}, "optimizer.type", "Adan is not one of ADAMW, ADAM, SGD"),
        ({"scheduler": {"type": "Warmup"}}, "scheduler.type", "Warmup is not one of WARMUPLR"),
        ({"aio": {"block size": 1}, **ZERO_3}, "aio.block size", "is not known to this format."),
        ({"fp16": {"bar": 1}}, "fp16.bar", "is not known to this format. Correct or remove it."),
        ({"fp16": {"enable": True}}, "fp16.enable", "is not known to this format. Did you mean fp16.enabled? Correct"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "gpu"}}},
            "zero_optimization.offload_param.device",
            "gpu is not one of none, cpu, nvme.",
        ),
        ({"gradient_cliping": 1}, "gradient_cliping", "Did you mean gradient_clipping?"),
    ],
)
def test_a_wrong_value_is_refused_with_its_rule(tmp_path: Path, content: Any, key: str, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        read(tmp_path, {"train_batch_size": 8, **content})
    (fault,) = raised.value.faults
    assert fault.key == key
    assert message in fault.message


def test_one_wrong_value_is_told_once(tmp_path: Path) -> None:
    content = {"zero_optimization": {"stage": 5, "overlap_comm": True}, "fp16": {"enabled": "maybe", "loss_scale": 0}}
    with pytest.raises(SpecError) as raised:
        read(tmp_path, content)
    assert [fault.key for fault in raised.value.faults] == ["zero_optimization.stage", "fp16.enabled"]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_rule_refuses_a_value_and_never_breaks(stage: int) -> None:
    """Whatever stands in a stranger's file: a value that is not taken is told with the rule."""
    values: list[Any] = [-1, 10**30, float("inf"), True, "${oc.env:HOME}", [1, [2]], "é' \\", "auto"]
    base = {"zero_optimization": {"stage": stage}, "fp16": {"enabled": True}, "wandb": {"enabled": True}}
    said = []
    for name in (name.replace("*", "anything") for name in TABLE):
        section, _, key = name.rpartition(".")
        for value in values:
            content = {**base, **unflattened(f"{section}.{key}".strip("."), value, base)}
            said += [fault.message for fault in deepspeed_lines(content, {}, origin="").faults]
    assert len(said) > 100
    assert all(message.endswith((".", "?")) for message in said)


def unflattened(name: str, value: Any, base: Any) -> Any:
    """A section with a dotted key, beside what it has already."""
    first, _, rest = name.partition(".")
    inner = base.get(first, {}) if isinstance(base, dict) else {}
    return {first: {**inner, **unflattened(rest, value, inner)} if rest else value}


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {')
    with pytest.raises(SpecError, match="is not JSON"):
        read_file(path)
    with pytest.raises(SpecError, match="there is no file"):
        read_file(tmp_path / "other.json")
