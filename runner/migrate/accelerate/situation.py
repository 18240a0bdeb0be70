"""What several arguments of Accelerate say together: the kind of run, its machines, how FSDP shards."""

from runner.migrate.outcome import Values
from runner.migrate.rules import is_on, size, whole

__all__ = [
    "fp8_backend",
    "is_deepspeed",
    "is_fp8",
    "is_fsdp",
    "is_megatron",
    "is_sharded",
    "kind_of_run",
    "num_machines",
    "sharding",
    "sharding_argument",
    "zero_stage",
]

FLAGS = {
    "use_deepspeed": "DEEPSPEED",
    "use_fsdp": "FSDP",
    "use_megatron_lm": "MEGATRON_LM",
    "tpu": "XLA",
    "multi_gpu": "MULTI_GPU",
}
"""Flags of `accelerate launch` that replace distributed_type."""
DEFAULT_STAGE = 2
"""Accelerate's, where zero_stage is not given."""
FSDP_WORDS = ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2")
"""What old files give by number, from 1."""


def kind_of_run(values: Values) -> str:
    """The distributed_type in capitals, as a flag or the file gives it. Without either, the number of processes."""
    flag = next((kind for flag, kind in FLAGS.items() if is_on(values, flag)), None)
    several = size(values, "num_processes") > 1 and not is_on(values, "cpu")
    return flag or str(values.get("distributed_type", "MULTI_GPU" if several else "NO")).upper()


def is_fsdp(values: Values) -> bool:
    """Whether the run uses FullyShardedDataParallel."""
    return kind_of_run(values) == "FSDP"


def is_deepspeed(values: Values) -> bool:
    """Whether the run uses DeepSpeed."""
    return kind_of_run(values) == "DEEPSPEED"


def is_megatron(values: Values) -> bool:
    """Whether the run uses Megatron-LM."""
    return kind_of_run(values) == "MEGATRON_LM"


def is_fp8(values: Values) -> bool:
    """Whether the run computes in 8-bit floating point."""
    return str(values.get("mixed_precision")).upper() == "FP8"


def fp8_backend(values: Values) -> str:
    """The library for 8-bit floating point, in capitals without signs; torchao's if none is given."""
    return str(values.get("fp8_backend", "AO")).upper().replace("-", "").replace("_", "")


def num_machines(values: Values) -> int:
    """The number of machines."""
    return size(values, "num_machines")


def zero_stage(values: Values) -> int:
    """The ZeRO stage, from the configuration or from the DeepSpeed file that it names."""
    try:
        return whole(values.get("zero_stage", DEFAULT_STAGE))
    except ValueError:
        return DEFAULT_STAGE


def sharding_argument(values: Values) -> str:
    """The argument that says how FSDP shards: in its first version, fsdp_sharding_strategy if it is given."""
    is_named = size(values, "fsdp_version") == 1 and "fsdp_sharding_strategy" in values
    return "fsdp_sharding_strategy" if is_named else "fsdp_reshard_after_forward"


def sharding(values: Values) -> str:
    """How FSDP shards, in capitals: a word of its first version, or TRUE or FALSE of its second."""
    found = str(values.get(sharding_argument(values), True)).upper()
    is_number = found.isdecimal() and 0 < int(found) <= len(FSDP_WORDS)
    return FSDP_WORDS[int(found) - 1] if is_number else found


def is_sharded(values: Values) -> bool:
    """Whether an FSDP run shards anything."""
    replicas_only = size(values, "parallelism_config_dp_replicate_size") > 1
    shares = ("parallelism_config_dp_shard_size", "parallelism_config_cp_size")
    replicas_only = replicas_only and all(size(values, name) == 1 for name in shares)
    return sharding(values) != "NO_SHARD" and not replicas_only
