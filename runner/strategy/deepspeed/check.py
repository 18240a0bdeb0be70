"""Faults of a DeepSpeed strategy that can be found without DeepSpeed and without a device."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.of_blocks import Compiled
from runner.config.run_spec import NonFinite
from runner.errors import Fault
from runner.strategy.deepspeed.config import AUTO, ZERO, Source, contradictions, unfilled

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec

HOST = "gloo"  # the collective backend when training on the CPU
OFFLOAD = (ZERO + "offload_optimizer.", ZERO + "offload_param.")
STAGE_3 = (3,)
STAGES_OF = {
    "zero_init": STAGE_3,
    "prefetch_bucket_size": STAGE_3,
    "param_persistence_threshold": STAGE_3,
    "max_live_parameters": STAGE_3,
    "max_reuse_distance": STAGE_3,
    "sub_group_size": STAGE_3,
    "moe_leaf_modules": STAGE_3,
    "allgather_bucket_size": (1, 2),
    "round_robin_gradients": (1, 2),
}
"""The stages that read a field, for fields that not every stage reads."""


def run_faults(spec: "RunSpec") -> Iterator[Fault]:
    """Settings elsewhere in the recipe that DeepSpeed does not support here."""
    if spec.batch.auto:
        rule = "auto rehearses steps without the other ranks, but DeepSpeed's collectives cannot be skipped."
        yield Fault(
            key="batch.micro_items", message=f"{rule} Give a number; the one that strategy=fsdp finds is close."
        )
    if spec.guard.non_finite is NonFinite.IGNORE and not spec.precision.scaler().scales:
        rule = "ignore applies steps whose gradient is not finite, but DeepSpeed skips every such step."
        yield Fault(key="guard.non_finite", message=f"{rule} Use stop or skip, or another strategy.")


def config_faults(sources: Sequence[Source]) -> Iterator[Fault]:
    """Faults of DeepSpeed's configuration across its sources; all contradictions are reported as one fault."""
    keys = {key for source in sources for key in source}
    if conflicts := contradictions(sources):
        lines = "\n      ".join(conflicts)
        way_out = "Keep each in one place, or write auto in the other."
        rule = f"set more than once, to different values:\n      {lines}\n    {way_out}"
        yield Fault(key="strategy.config", message=rule)
    if unknown := unfilled(sources):
        rule = f"auto cannot be filled in for {', '.join(unknown)}. Give each an explicit value."
        yield Fault(key="strategy.config", message=rule)
    if any(key == "scheduler" or key.startswith("scheduler.") for key in keys):
        rule = (
            "scheduler: the group schedule sets learning rates, for every strategy. DeepSpeed's own schedulers can be "
            "used by _target_: schedule._target_=deepspeed.runtime.lr_schedules.WarmupDecayLR with its arguments."
        )
        yield Fault(key="strategy.config", message=rule)
    if "zero_optimization" in keys:
        yield Fault(key="strategy.config", message="zero_optimization must be a section {…}, not a single value.")


def stage_faults(part: Mapping[str, Any], stage: int) -> Iterator[Fault]:
    """Fields that only another stage reads. A config file may contain them, as templates for all stages do.

    Args:
        part: the strategy's own fields; those that are off are ignored.
    """
    for name, stages in STAGES_OF.items():
        value = part[name]
        is_off = value is None or value is False or value == []
        if stage not in stages and not is_off:
            rule = f"{value} is read by stage {' or '.join(map(str, stages))}, but stage {stage} does not read it."
            ways = "Use strategy=deepspeed_zero3, or remove it." if 3 in stages else "Remove it."
            yield Fault(key=f"strategy.{name}", message=f"{rule} {ways}")


def offload_faults(merged: Mapping[str, Any], spec: "RunSpec") -> Iterator[Fault]:
    """Incompatible choices of stage, offload, ZeRO++ and hardware."""
    import torch

    stage = merged[ZERO + "stage"]
    optimizer, param = (merged.get(section + "device", "none") for section in OFFLOAD)
    if param != "none" and stage != 3:
        rule = f"offload_param={param} needs stage 3, which alone partitions parameters. Use strategy=deepspeed_zero3."
        yield Fault(key="strategy.offload_param", message=rule)
    if optimizer == "nvme" and stage != 3:
        rule = f"offload_optimizer=nvme needs stage 3, not {stage}. Use cpu, or strategy=deepspeed_zero3."
        yield Fault(key="strategy.offload_optimizer", message=rule)
    if stage == 3 and spec.compile.what is Compiled.MODEL:
        rule = (
            "model compiles everything into one graph, in which stage 3 cannot gather weights. Use compile.what=blocks."
        )
        yield Fault(key="compile.what", message=rule)
    if optimizer != "none" and spec.clip.value is not None:
        rule = f"{spec.clip.value} clips each element, which DeepSpeed cannot do when the optimizer is offloaded."
        yield Fault(key="clip.value", message=rule + " Use clip.norm, or strategy.offload_optimizer=none.")
    if optimizer != "none" and spec.precision.dtypes.weight != torch.float32:
        narrow = str(spec.precision.dtypes.weight).removeprefix("torch.")
        rule = f"{optimizer}: an offloaded optimizer needs float32 weights, but this precision keeps them in {narrow}."
        yield Fault(key="strategy.offload_optimizer", message=rule + " Use precision=bf16, or none.")
    for name, section, device in zip(("optimizer", "param"), OFFLOAD, (optimizer, param), strict=True):
        yield from _path_faults(f"strategy.{name}_nvme_path", device, merged.get(section + "nvme_path"))
    yield from _plus_plus_faults(merged, spec, stage)


def _path_faults(key: str, device: str, path: str | None) -> Iterator[Fault]:
    if device == "nvme" and (path is None or path == AUTO):
        yield Fault(key=key, message="nvme needs a directory on the disk. Set its path.")
    elif device == "nvme" and not Path(str(path)).is_dir():
        yield Fault(key=key, message=f"{path} is not a directory. Create it, or give another one on the disk.")
    elif path is not None and device != "nvme":
        rule = f"{path} is only used with nvme, but offload is {device}. Remove it, or offload to nvme."
        yield Fault(key=key, message=rule)


def _plus_plus_faults(merged: Mapping[str, Any], spec: "RunSpec", stage: int) -> Iterator[Fault]:
    size = merged.get(ZERO + "zero_hpz_partition_size", 1)
    requested = {
        "hpz_partition_size": size if size > 1 else None,
        "quantized_weights": merged.get(ZERO + "zero_quantized_weights"),
        "quantized_gradients": merged.get(ZERO + "zero_quantized_gradients"),
    }
    for name, value in requested.items():
        if value and stage != 3:
            rule = f"{value} is ZeRO++, which needs stage 3, not {stage}. Use strategy=deepspeed_zero3, or null."
            yield Fault(key=f"strategy.{name}", message=rule)
        elif value and name.startswith("quantized") and spec.hardware.backend == HOST:
            yield Fault(key=f"strategy.{name}", message="its kernels need CUDA; there are none for the CPU. Use null.")
    if spec.world_size % size:
        rule = f"{size} does not divide the world size {spec.world_size}. Use the number of ranks per node."
        yield Fault(key="strategy.hpz_partition_size", message=rule)
