"""The section megatron_lm_config: sizes of axes, and what of Megatron-LM's own is done otherwise here."""

from runner.migrate.accelerate.situation import is_megatron
from runner.migrate.accelerate.strategy import strategy
from runner.migrate.accelerate.zero import accumulate
from runner.migrate.outcome import Outcome, Rule, Values, becomes
from runner.migrate.rules import (
    chooses,
    if_on,
    is_on,
    limit,
    missing,
    missing_unless,
    needless,
    only_if,
    size,
    whole,
    yes_no,
)

__all__ = ["MEGATRON"]

OF_THE_MODEL = "a choice of the model: an argument of the model hook"
SELECTIVE = becomes(("activation_checkpointing.what", "selective"))
BLOCKS = becomes(("activation_checkpointing.what", "blocks"))
OFF_OR_MISSING = {
    "use_custom_fsdp": "Megatron-LM's own: strategy.shard shards by torch's fully_shard, and so does strategy=fsdp",
    "overlap_cpu_optimizer_d2h_h2d": "belongs to the optimizer's offload",
    "use_precision_aware_optimizer": "not there: precision=bf16_pure keeps optimizer state in 16 bits",
    "no_load_optim": "a checkpoint is resumed as a whole; runner export DIR writes the weights alone",
    "no_save_optim": "a checkpoint is resumed as a whole; runner export DIR writes the weights alone",
    "eod_mask_loss": "the loss hook's: leave those tokens out of total and count",
}


def _degree(axis: str, *others: tuple[str, object]) -> Rule:
    """The size of an axis, and what else Megatron-LM means by it."""

    def rule(value: object, values: Values) -> Outcome:
        degree = whole(value)
        if degree < 1:
            raise ValueError("must be at least 1.")
        return Outcome(remark="one, as by default") if degree == 1 else becomes((f"strategy.{axis}", degree), *others)

    return rule


def _context(value: object, values: Values) -> Outcome:
    others = ("megatron_lm_pp_degree", "megatron_lm_expert_model_parallel_size")
    if whole(value) > 1 and any(size(values, name) > 1 for name in others):
        return Outcome(remark="strategy.context does not go with strategy.pipeline or expert yet", is_missing=True)
    return _degree("context")(value, values)


def _sequence_parallelism(value: object, values: Values) -> Outcome:
    if size(values, "megatron_lm_tp_degree") == 1:
        yes_no(value)
        return Outcome(remark="has no effect without a tp_degree above 1")
    return becomes(("strategy.sequence_parallel", yes_no(value)))


def _optimizer_offload(value: object, values: Values) -> Outcome:
    """Shards, with gradients and optimizer state, on the host: there must be shards."""
    if not yes_no(value):
        return Outcome(remark="off, as here")
    if is_on(values, "megatron_lm_use_distributed_optimizer"):
        return becomes(("strategy.offload", True), remark="shards and gradients, too")
    return Outcome(remark="strategy=deepspeed_zero2 strategy.offload_optimizer=cpu", is_missing=True)


def _distributed_optimizer(value: object, values: Values) -> Outcome:
    yes_no(value)
    return strategy(values)


def _recomputed_layers(value: object, values: Values) -> Outcome:
    if whole(value) == 1:
        return Outcome(remark="each block is recomputed by itself, as here")
    return Outcome(
        remark="blocks are recomputed one by one; activation_checkpointing.every leaves some out", is_missing=True
    )


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
            "tp_degree": _degree("tensor"),
            "pp_degree": _degree("pipeline", ("strategy.schedule", "1f1b")),
            "context_parallel_size": _context,
            "expert_model_parallel_size": _degree("expert"),
            **{name: missing_unless(False, remark, convert=yes_no) for name, remark in OFF_OR_MISSING.items()},
            "expert_tensor_parallel_size": missing_unless(
                1, "not there: strategy.expert gives each rank whole experts", convert=whole
            ),
            "sequence_parallelism": _sequence_parallelism,
            "num_micro_batches": accumulate,
            "optimizer_cpu_offload": _optimizer_offload,
            "gradient_clipping": limit("clip.norm"),
            "use_distributed_optimizer": _distributed_optimizer,
            "recompute_activations": _recompute,
            "recompute_granularity": chooses({"FULL": BLOCKS, "SELECTIVE": SELECTIVE}),
            "recompute_method": chooses(
                {
                    "UNIFORM": Outcome(remark="each block is recomputed by itself, as here"),
                    "BLOCK": Outcome(
                        remark="activation_checkpointing.every recomputes each n-th block", is_missing=True
                    ),
                }
            ),
            "recompute_num_layers": _recomputed_layers,
            "decoder_last_pipeline_num_layers": missing("strategy.split names the modules at which stages begin"),
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
