"""The section megatron_lm_config: what of it does not depend on Megatron-LM's own parallelism."""

from runner.migrate.accelerate.situation import is_megatron
from runner.migrate.accelerate.strategy import strategy
from runner.migrate.accelerate.zero import accumulate
from runner.migrate.outcome import Outcome, Values, becomes
from runner.migrate.rules import chooses, if_on, limit, missing, missing_unless, needless, only_if, whole, yes_no

__all__ = ["MEGATRON"]

RANKS = "{} is not there: strategy=fsdp or deepspeed_zero3 shards a model that does not fit"
OF_THE_MODEL = "a choice of the model: an argument of the model hook"
SELECTIVE = becomes(("activation_checkpointing.what", "selective"))
BLOCKS = becomes(("activation_checkpointing.what", "blocks"))
DEGREES = {
    "tp_degree": "tensor parallelism",
    "pp_degree": "pipeline parallelism",
    "expert_model_parallel_size": "expert parallelism",
    "expert_tensor_parallel_size": "expert parallelism",
    "context_parallel_size": "context parallelism",
}
OFF_OR_MISSING = {
    "sequence_parallelism": "belongs to tensor parallelism, which is not there",
    "use_custom_fsdp": "Megatron-LM's own; here strategy=fsdp",
    "optimizer_cpu_offload": "strategy=fsdp strategy.offload=true, or strategy=deepspeed_zero2 "
    "strategy.offload_optimizer=cpu",
    "overlap_cpu_optimizer_d2h_h2d": "belongs to the optimizer's offload",
    "use_precision_aware_optimizer": "not there: precision=bf16_pure keeps optimizer state in 16 bits",
    "no_load_optim": "a checkpoint is resumed as a whole; runner export DIR writes the weights alone",
    "no_save_optim": "a checkpoint is resumed as a whole; runner export DIR writes the weights alone",
    "eod_mask_loss": "the loss hook's: leave those tokens out of total and count",
}


def _distributed_optimizer(value: object, values: Values) -> Outcome:
    return strategy(values)._replace(remark="shards gradients and optimizer state", is_missing=False)


def _recompute(value: object, values: Values) -> Outcome:
    if "megatron_lm_recompute_granularity" in values:
        return Outcome(remark="recompute_granularity says which")
    return if_on(SELECTIVE, becomes(("activation_checkpointing.what", "none")))(value, values)


MEGATRON = only_if(
    is_megatron,
    "distributed_type: MEGATRON_LM",
    {
        f"megatron_lm_{name}": rule
        for name, rule in {
            **{name: missing_unless(1, RANKS.format(what), convert=whole) for name, what in DEGREES.items()},
            **{name: missing_unless(False, remark, convert=yes_no) for name, remark in OFF_OR_MISSING.items()},
            "num_micro_batches": accumulate,
            "gradient_clipping": limit("clip.norm"),
            "use_distributed_optimizer": _distributed_optimizer,
            "recompute_activations": _recompute,
            "recompute_granularity": chooses({"FULL": BLOCKS, "SELECTIVE": SELECTIVE}),
            "recompute_method": missing("activation_checkpointing.every chooses among blocks"),
            "recompute_num_layers": missing("activation_checkpointing.every chooses among blocks"),
            "decoder_last_pipeline_num_layers": missing(RANKS.format(DEGREES["pp_degree"])),
            "calculate_per_token_loss": needless("a loss hook returns Loss(total, count): the mean is over tokens"),
            "attention_backend": missing(OF_THE_MODEL),
            "attention_dropout": missing(OF_THE_MODEL),
            "hidden_dropout": missing(OF_THE_MODEL),
            "attention_softmax_in_fp32": missing(OF_THE_MODEL),
            "use_rotary_position_embeddings": missing(OF_THE_MODEL),
        }.items()
    },
)
"""The section megatron_lm_config."""
