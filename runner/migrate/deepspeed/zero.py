"""The section zero_optimization: the stage, what is offloaded, sizes of buckets, ZeRO++."""

from collections.abc import Callable

from runner.migrate.outcome import Outcome, Rule, Values, becomes
from runner.migrate.rules import adds, missing, needless, only_if, sets, size, text, whole, yes_no

__all__ = ["ZERO_OPTIMIZATION", "is_sharded", "stage"]

ZERO = "zero_optimization."
CONFIG = "strategy.config.zero_optimization."
OPTIONS = {0: "ddp", **{stage: f"deepspeed_zero{stage}" for stage in (1, 2, 3)}}
PLACES = ("none", "cpu", "nvme")
OWN_KEYS = {
    "reduce_bucket_size": "reduce_bucket_size",
    "zero_hpz_partition_size": "hpz_partition_size",
}
OWN_KEYS_OF_STAGE_3 = {
    "stage3_prefetch_bucket_size": "prefetch_bucket_size",
    "stage3_param_persistence_threshold": "param_persistence_threshold",
    "stage3_max_live_parameters": "max_live_parameters",
    "stage3_max_reuse_distance": "max_reuse_distance",
    "sub_group_size": "sub_group_size",
}
"""Whole numbers for which `strategy` has a key, and that key."""
DEEPSPEEDS_OWN = (
    "reduce_scatter",
    "allgather_partitions",
    "use_multi_rank_bucket_allreduce",
    "ignore_unused_parameters",
    "parameter_alignment",
    "zero_quantized_nontrainable_weights",
    "stage3_model_persistence_threshold",
    "stage3_module_granularity_threshold",
    "stage3_use_all_reduce_for_fetch_params",
    "stage3_allgather_sequential",
    "log_trace_cache_warnings",
    "enable_sanity_checks",
    "override_module_apply",
    "compute_grad_norm",
    "leaf_module",
)
"""Keys that only DeepSpeed reads: they go into strategy.config."""
OFFLOADS = {
    "offload_optimizer": (
        "buffer_count",
        "pipeline_read",
        "pipeline_write",
        "fast_init",
        "ratio",
        "cpuadam_cores_perc",
    ),
    "offload_param": ("buffer_count", "buffer_size", "max_in_cpu"),
}
"""The sections of an offload, and their keys that only DeepSpeed reads."""
DEFAULT = "as by default where there is a GPU"


def stage(values: Values) -> int:
    """The ZeRO stage of a file; 0 if it gives none, or a wrong one, which its own rule tells."""
    found = size(values, ZERO + "stage", default=0)
    return found if found in OPTIONS else 0


def is_sharded(values: Values) -> bool:
    """Whether the stage shards anything: without, the strategy is not DeepSpeed's."""
    return stage(values) > 0


def _stage_in(*stages: int) -> Callable[[Values], bool]:
    return lambda values: stage(values) in stages


def _strategy(value: object, values: Values) -> Outcome:
    found = whole(value)
    if found not in OPTIONS:
        raise ValueError("must be 0, 1, 2 or 3.")
    return becomes(("strategy", OPTIONS[found]))


def _offload(section: str) -> dict[str, Rule]:
    """The rules of offload_optimizer or offload_param."""
    short = section.removeprefix("offload_")

    def device(value: object, values: Values) -> Outcome:
        place = text(value).lower()
        if place not in PLACES:
            raise ValueError(f"is not one of {', '.join(PLACES)}.")
        return becomes((f"strategy.{section}", place))

    def path(value: object, values: Values) -> Outcome:
        if str(values.get(f"{ZERO}{section}.device")).lower() != PLACES[2]:
            return Outcome(remark="has no effect without device: nvme")
        return becomes((f"strategy.{short}_nvme_path", text(value)))

    def pinned(value: object, values: Values) -> Outcome:
        return Outcome(remark=DEFAULT) if yes_no(value) else becomes(("strategy.pin_memory", False))

    own: dict[str, Rule] = {name: adds(f"{CONFIG}{section}.{name}") for name in OFFLOADS[section]}
    rules = {"device": device, "nvme_path": path, "pin_memory": pinned, **own}
    return {f"{section}.{name}": rule for name, rule in rules.items()}


def _old_offload(section: str) -> Rule:
    """cpu_offload and cpu_offload_param, which DeepSpeed has replaced."""
    return lambda value, values: becomes((f"strategy.{section}", PLACES[yes_no(value)]))


OF_EVERY_STAGE: dict[str, Rule] = {
    **{name: sets(f"strategy.{key}", whole) for name, key in OWN_KEYS.items()},
    **{name: sets(f"strategy.{name}", yes_no) for name in ("overlap_comm", "contiguous_gradients")},
    **{name: adds(CONFIG + name) for name in DEEPSPEEDS_OWN},
    **_offload("offload_optimizer"),
    "cpu_offload": _old_offload("offload_optimizer"),
    "cpu_offload_use_pin_memory": needless(DEFAULT),
    "load_from_fp32_weights": needless("a checkpoint of the runner holds the weights in full precision"),
    "elastic_checkpoint": needless("a checkpoint resumes on any number of processes"),
    "pipeline_loading_checkpoint": needless("checkpoints are the runner's"),
    "stage3_gather_16bit_weights_on_model_save": needless("runner export DIR --dtype bfloat16, whenever it is wanted"),
    "stage3_gather_fp16_weights_on_model_save": needless("runner export DIR --dtype float16, whenever it is wanted"),
    "legacy_stage1": needless("the present implementation is used"),
    "memory_efficient_linear": needless("off: it would replace torch's linear function for good"),
    "save_muon_momentum_buffer_in_memory": missing("belongs to Muon, which has no option here"),
    "zenflow.*": missing("ZenFlow is not there"),
    "offload_optimizer.super_offload": missing("SuperOffload is not there"),
}
OF_STAGE_1_AND_2: dict[str, Rule] = {
    "allgather_bucket_size": sets("strategy.allgather_bucket_size", whole),
    "round_robin_gradients": sets("strategy.round_robin_gradients", yes_no),
}
OF_STAGE_3: dict[str, Rule] = {
    **{name: sets(f"strategy.{key}", whole) for name, key in OWN_KEYS_OF_STAGE_3.items()},
    "zero_quantized_weights": sets("strategy.quantized_weights", yes_no),
    "zero_quantized_gradients": sets("strategy.quantized_gradients", yes_no),
    **_offload("offload_param"),
    "cpu_offload_param": _old_offload("offload_param"),
}
ZERO_OPTIMIZATION: dict[str, Rule] = {
    ZERO + "stage": _strategy,
    **{
        ZERO + name: rule
        for name, rule in {
            **only_if(is_sharded, "a stage above 0", OF_EVERY_STAGE),
            **only_if(_stage_in(1, 2), "stage 1 or 2", OF_STAGE_1_AND_2),
            **only_if(_stage_in(3), "stage 3", OF_STAGE_3),
        }.items()
    },
}
"""The section zero_optimization, by dotted name."""
