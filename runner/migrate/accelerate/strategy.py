"""How model and optimizer are distributed: the strategy that a kind of run becomes, and the keys of FSDP."""

from runner.migrate.accelerate.situation import (
    is_fsdp,
    is_sharded,
    kind_of_run,
    sharding,
    sharding_argument,
    zero_stage,
)
from runner.migrate.outcome import Outcome, Rule, Values, becomes
from runner.migrate.rules import (
    chooses,
    if_on,
    is_on,
    missing,
    missing_unless,
    names,
    needless,
    only_if,
    sets,
    size,
    whole,
    yes_no,
)

__all__ = ["FSDP", "PARALLELISM", "strategy"]

REPLICAS = becomes(("strategy", "ddp"))
SHARDED = {
    (True, False): "fsdp",
    (False, False): "fsdp_grad_op",
    (True, True): "hsdp",
    (False, True): "hsdp_grad_op",
}
"""The option, by whether parameters are freed after the forward and whether groups of ranks are replicas."""
WORDS = {
    "FULL_SHARD": (True, False),
    "SHARD_GRAD_OP": (False, False),
    "NO_SHARD": (True, False),
    "HYBRID_SHARD": (True, True),
    "HYBRID_SHARD_ZERO2": (False, True),
    "NO_RESHARD": (False, False),
    "TRUE": (True, False),
    "FALSE": (False, False),
}
ZERO = {stage: becomes(("strategy", f"deepspeed_zero{stage}")) for stage in (1, 2, 3)}
NOT_SHARDED = "a sharding: this one is strategy=ddp"
DEGREES = ("tp_degree", "pp_degree", "context_parallel_size", "expert_model_parallel_size")
"""The sizes of Megatron-LM's axes."""
MODEL_AXES = {"parallelism_config_cp_size": "context", "parallelism_config_tp_size": "tensor"}
"""The sizes of Accelerate's axes along which ranks read the same items, and what the axes are called here."""


def strategy(values: Values) -> Outcome:
    """The strategy of a run."""
    special = {"NO": _single, "FSDP": _fsdp, "DEEPSPEED": _deepspeed, "MEGATRON_LM": _megatron}
    return special.get(kind_of_run(values), _replicas)(values)


def _single(values: Values) -> Outcome:
    return becomes(("strategy", "single"))


def _replicas(values: Values) -> Outcome:
    return REPLICAS


def _deepspeed(values: Values) -> Outcome:
    return ZERO.get(zero_stage(values), REPLICAS)


def _megatron(values: Values) -> Outcome:
    shards = is_on(values, "megatron_lm_use_distributed_optimizer")
    if all(size(values, f"megatron_lm_{degree}") == 1 for degree in DEGREES):
        return becomes(("strategy", "fsdp_grad_op")) if shards else REPLICAS
    parallel = ("strategy", "parallel")
    if shards:
        return becomes(
            parallel, ("strategy.replicate", 1), ("strategy.shard", "auto"), ("strategy.sharding", "shard_grad_op")
        )
    return becomes(parallel, ("strategy.replicate", "auto"), ("strategy.shard", 1))


def _fsdp(values: Values) -> Outcome:
    is_whole = not is_sharded(values)
    frees, hybrid = WORDS.get(sharding(values), WORDS["FULL_SHARD"])
    replicas, shards = (size(values, f"parallelism_config_dp_{name}_size") for name in ("replicate", "shard"))
    if axes := _model_axes(values):
        sizes = (("strategy.replicate", replicas), ("strategy.shard", 1 if is_whole else "auto"), *axes)
        kept = () if frees or is_whole else (("strategy.sharding", "shard_grad_op"),)
        return becomes(("strategy", "parallel"), *sizes, *kept)
    if is_whole:
        return REPLICAS
    if replicas > 1:
        return becomes(("strategy", SHARDED[frees, True]), ("strategy.shard_size", shards))
    return becomes(("strategy", SHARDED[frees, hybrid]))


def _model_axes(values: Values) -> list[tuple[str, int]]:
    return [(f"strategy.{axis}", parts) for name, axis in MODEL_AXES.items() if (parts := size(values, name)) > 1]


def _by_sharding(name: str) -> Rule:
    """The strategy, if this is the argument that decides how is sharded."""

    def rule(value: object, values: Values) -> Outcome:
        chooses(dict.fromkeys(WORDS, Outcome()), numbered=True)(value, values)
        if name != sharding_argument(values):
            return Outcome(remark=f"has no effect beside fsdp_version {size(values, 'fsdp_version')}")
        return strategy(values)

    return rule


def _min_params(value: object, values: Values) -> Outcome:
    fewest = whole(value)
    by_size = {"SIZE_BASED_WRAP", "2"} & {str(values.get("fsdp_auto_wrap_policy", "SIZE_BASED_WRAP")).upper()}
    if not by_size or fewest < 1:
        return Outcome(remark="has no effect without fsdp_auto_wrap_policy: SIZE_BASED_WRAP")
    return becomes(("strategy.wrap", "size"), ("strategy.wrap_min_params", fewest))


SHARDING_KEYS: dict[str, Rule] = {
    "fsdp_offload_params": sets("strategy.offload", yes_no),
    "fsdp_auto_wrap_policy": chooses(
        {
            "TRANSFORMER_BASED_WRAP": becomes(("strategy.wrap", "auto")),
            "SIZE_BASED_WRAP": becomes(("strategy.wrap", "size")),
            "NO_WRAP": becomes(("strategy.wrap", "none")),
        },
        numbered=True,
    ),
    "fsdp_min_num_params": _min_params,
    "fsdp_backward_prefetch": chooses(
        {
            "BACKWARD_PRE": becomes(("strategy.backward_prefetch", 1)),
            "BACKWARD_POST": becomes(
                ("strategy.backward_prefetch", 0),
                remark="torch's fully_shard gathers before a block's backward (1) or when the block is reached (0)",
                is_missing=True,
            ),
            "NO_PREFETCH": becomes(("strategy.backward_prefetch", 0)),
        },
        numbered=True,
    ),
    "fsdp_forward_prefetch": if_on(
        becomes(("strategy.forward_prefetch", 1)), becomes(("strategy.forward_prefetch", 0))
    ),
    "fsdp_cpu_ram_efficient_loading": if_on(
        becomes(("strategy.build", "rank_0")), becomes(("strategy.build", "every_rank"))
    ),
}
SHARDING_KEYS["fsdp_backward_prefetch_policy"] = SHARDING_KEYS["fsdp_backward_prefetch"]


def _version(value: object) -> None:
    if whole(value) not in (1, 2):
        raise ValueError("must be 1 or 2.")


FSDP = only_if(
    is_fsdp,
    "distributed_type: FSDP",
    {
        "fsdp_version": needless("always torch's fully_shard, the second version", _version),
        "fsdp_sharding_strategy": _by_sharding("fsdp_sharding_strategy"),
        "fsdp_reshard_after_forward": _by_sharding("fsdp_reshard_after_forward"),
        "fsdp_transformer_layer_cls_to_wrap": sets("blocks.classes", names),
        "fsdp_transformer_cls_names_to_wrap": sets("blocks.classes", names),
        "fsdp_state_dict_type": chooses(
            {
                "FULL_STATE_DICT": becomes(("checkpoint", "full")),
                "LOCAL_STATE_DICT": Outcome(
                    remark="not there: it could be read on as many processes only. checkpoint=sharded, the default, "
                    "is read on any number",
                    is_missing=True,
                ),
                "SHARDED_STATE_DICT": becomes(("checkpoint", "sharded")),
            },
            numbered=True,
        ),
        "fsdp_activation_checkpointing": if_on(
            becomes(("activation_checkpointing.what", "blocks")), becomes(("activation_checkpointing.what", "none"))
        ),
        "fsdp_activation_checkpointing_offload": missing_unless(
            False, "not there: activation_checkpointing.what=blocks keeps the least on the device", convert=yes_no
        ),
        "fsdp_use_orig_params": needless("always so: parameters keep their names and shapes"),
        "fsdp_sync_module_states": needless("weights are equal on all ranks: strategy.build says how"),
        "fsdp_limit_all_gathers": needless("fully_shard holds no more than the blocks at work and those prefetched"),
        "fsdp_ignored_modules": missing("everything is sharded; leave classes out of strategy.wrap_classes"),
        **only_if(is_sharded, NOT_SHARDED, SHARDING_KEYS),
    },
)
"""The section fsdp_config."""


def _replicate_size(value: object, values: Values) -> Outcome:
    if whole(value) <= 1:
        return Outcome(remark="one, as by default")
    return strategy(values)


def _shard_size(value: object, values: Values) -> Outcome:
    if whole(value) <= 1:
        return Outcome(remark="no group of ranks of its own, as by default")
    hybrid = size(values, "parallelism_config_dp_replicate_size") > 1 or _model_axes(values)
    return strategy(values) if hybrid else Outcome(remark="strategy=fsdp shards over all processes")


def _model_size(value: object, values: Values) -> Outcome:
    return strategy(values) if whole(value) > 1 else Outcome(remark="one, as by default")


PARALLELISM: dict[str, Rule] = {
    "use_parallelism_config": needless("the keys of the section say what is used"),
    **only_if(
        is_fsdp,
        "distributed_type: FSDP",
        {
            "parallelism_config_dp_replicate_size": _replicate_size,
            "parallelism_config_dp_shard_size": _shard_size,
            **dict.fromkeys(MODEL_AXES, _model_size),
        },
    ),
    "parallelism_config_sp_size": missing_unless(
        1, "DeepSpeed's is not there. strategy=parallel divides sequences: strategy.context", convert=whole
    ),
    "parallelism_config_cp_backend": needless("attention over parts of sequences is torch's"),
    "parallelism_config_cp_comm_strategy": chooses(
        {
            "ALLGATHER": Outcome(remark="keys and values are gathered from all ranks"),
            "ALLTOALL": Outcome(remark="keys and values are gathered instead of passed on", is_missing=True),
        }
    ),
    **{
        f"parallelism_config_{name}": needless("belongs to a parallelism that is not there")
        for name in (
            "sp_backend",
            "sp_seq_length",
            "sp_seq_length_is_variable",
            "sp_attn_implementation",
        )
    },
}
"""The section parallelism_config."""
