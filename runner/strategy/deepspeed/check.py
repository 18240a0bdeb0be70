"""What can be wrong with a DeepSpeed strategy, known without DeepSpeed and without a device."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from runner.config.run_spec import Compiled, NonFinite
from runner.errors import Fault
from runner.strategy.deepspeed.config import AUTO, ZERO, Source, contradictions, unfilled

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec

HOST = "gloo"  # the backend of hardware that is the host itself
OFFLOAD = (ZERO + "offload_optimizer.", ZERO + "offload_param.")
ALL_CUT = (3,)
STAGES_OF = {
    "zero_init": ALL_CUT,
    "prefetch_bucket_size": ALL_CUT,
    "param_persistence_threshold": ALL_CUT,
    "max_live_parameters": ALL_CUT,
    "max_reuse_distance": ALL_CUT,
    "sub_group_size": ALL_CUT,
    "moe_leaf_modules": ALL_CUT,
    "allgather_bucket_size": (1, 2),
    "round_robin_gradients": (1, 2),
}
"""Which stages read a field, for those that not all do."""


def run_faults(spec: "RunSpec") -> Iterator[Fault]:
    """What the rest of the recipe asks for and DeepSpeed does not do here."""
    if spec.batch.auto:
        rule = "auto rehearses steps without the other ranks, and DeepSpeed's collectives cannot be left out."
        yield Fault(key="batch.micro_items", message=f"{rule} Give a number; strategy=fsdp finds one that is near.")
    if spec.guard.non_finite is NonFinite.IGNORE and not spec.precision.scaler().scales:
        rule = "ignore takes steps whose gradient is not finite, but DeepSpeed skips every such step."
        yield Fault(key="guard.non_finite", message=f"{rule} Use stop or skip, or another strategy.")


def config_faults(sources: Sequence[Source]) -> Iterator[Fault]:
    """What the sources of DeepSpeed's configuration say together: one fault for all that is said twice."""
    keys = {key for source in sources for key in source}
    if twice := contradictions(sources):
        lines = "\n      ".join(twice)
        rule = f"given twice, with different values:\n      {lines}\n    Leave each in one place, or write auto there."
        yield Fault(key="strategy.config", message=rule)
    if unknown := unfilled(sources):
        rule = f"auto is not a value that anything fills for {', '.join(unknown)}. Give each a value of its own."
        yield Fault(key="strategy.config", message=rule)
    if any(key == "scheduler" or key.startswith("scheduler.") for key in keys):
        rule = (
            "scheduler: learning rates are moved by the group schedule, for every strategy. DeepSpeed's own are there "
            "by _target_: schedule._target_=deepspeed.runtime.lr_schedules.WarmupDecayLR and its arguments."
        )
        yield Fault(key="strategy.config", message=rule)
    if "zero_optimization" in keys:
        yield Fault(key="strategy.config", message="zero_optimization must be a section {…}, not a single value.")


def stage_faults(part: Mapping[str, Any], stage: int) -> Iterator[Fault]:
    """Fields that another stage reads; a file may have them, as templates for every stage do.

    Args:
        part: the strategy's own fields; one that is off says nothing.
    """
    for name, stages in STAGES_OF.items():
        value = part[name]
        is_off = value is None or value is False or value == []
        if stage not in stages and not is_off:
            rule = f"{value} is of stage {' or '.join(map(str, stages))}, and stage {stage} does not read it."
            ways = "Use strategy=deepspeed_zero3, or leave it out." if 3 in stages else "Leave it out."
            yield Fault(key=f"strategy.{name}", message=f"{rule} {ways}")


def offload_faults(joined: Mapping[str, Any], spec: "RunSpec") -> Iterator[Fault]:
    """What stage, offload, ZeRO++ and hardware do not allow each other."""
    stage = joined[ZERO + "stage"]
    optimizer, param = (joined.get(section + "device", "none") for section in OFFLOAD)
    if param != "none" and stage != 3:
        rule = f"offload_param={param} needs stage 3: only there are parameters cut. Use strategy=deepspeed_zero3."
        yield Fault(key="strategy.offload_param", message=rule)
    if optimizer == "nvme" and stage != 3:
        rule = f"offload_optimizer=nvme needs stage 3, not {stage}. Use cpu, or strategy=deepspeed_zero3."
        yield Fault(key="strategy.offload_optimizer", message=rule)
    if stage == 3 and spec.compile.what is Compiled.MODEL:
        rule = "model makes one graph of all, in which stage 3 cannot gather weights. Use compile.what=blocks."
        yield Fault(key="compile.what", message=rule)
    if optimizer != "none" and spec.clip.value is not None:
        rule = f"{spec.clip.value} clips each element, which DeepSpeed does not where the optimizer is offloaded."
        yield Fault(key="clip.value", message=rule + " Use clip.norm, or strategy.offload_optimizer=none.")
    if optimizer != "none" and spec.precision.dtypes.weight != torch.float32:
        narrow = str(spec.precision.dtypes.weight).removeprefix("torch.")
        rule = f"{optimizer}: what is stepped on the host is kept in float32, but this precision keeps it in {narrow}."
        yield Fault(key="strategy.offload_optimizer", message=rule + " Use precision=bf16, or none.")
    for name, section, device in zip(("optimizer", "param"), OFFLOAD, (optimizer, param), strict=True):
        yield from _path_faults(f"strategy.{name}_nvme_path", device, joined.get(section + "nvme_path"))
    yield from _plus_plus_faults(joined, spec, stage)


def _path_faults(key: str, device: str, path: str | None) -> Iterator[Fault]:
    if device == "nvme" and (path is None or path == AUTO):
        yield Fault(key=key, message="nvme needs a directory on the disk: give its path.")
    elif device == "nvme" and not Path(str(path)).is_dir():
        yield Fault(key=key, message=f"{path} is no directory. Make it, or give another on the disk.")
    elif path is not None and device != "nvme":
        rule = f"{path} is used with nvme only, but offload is {device}. Leave it out, or offload to nvme."
        yield Fault(key=key, message=rule)


def _plus_plus_faults(joined: Mapping[str, Any], spec: "RunSpec", stage: int) -> Iterator[Fault]:
    size = joined.get(ZERO + "zero_hpz_partition_size", 1)
    asked = {
        "hpz_partition_size": size if size > 1 else None,
        "quantized_weights": joined.get(ZERO + "zero_quantized_weights"),
        "quantized_gradients": joined.get(ZERO + "zero_quantized_gradients"),
    }
    for name, value in asked.items():
        if value and stage != 3:
            rule = f"{value} is ZeRO++, which needs stage 3, not {stage}. Use strategy=deepspeed_zero3, or null."
            yield Fault(key=f"strategy.{name}", message=rule)
        elif value and name.startswith("quantized") and spec.hardware.backend == HOST:
            yield Fault(key=f"strategy.{name}", message="its kernels are for CUDA, not for the host. Use null.")
    if spec.world_size % size:
        rule = f"{size} does not divide the world size {spec.world_size}. Use as many as a machine has."
        yield Fault(key="strategy.hpz_partition_size", message=rule)
