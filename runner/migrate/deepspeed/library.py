"""What else DeepSpeed does: its reports, its own sections, and what the runner decides in its place."""

from collections.abc import Mapping

from runner.migrate.deepspeed.zero import is_sharded
from runner.migrate.outcome import Outcome, Rule, Values, becomes
from runner.migrate.rules import adds, is_on, missing, missing_unless, needless, only_if, sets, text, yes_no

__all__ = ["LIBRARY"]

DECIDED = "decided by the runner, which divides gradients itself"
FOLLOWS = "follows from precision"
CHECKPOINTS = "checkpoints are the runner's: the group checkpoint"
TRACKERS = ("tensorboard", "wandb")
"""Sections that are options of the group tracker."""
PASSED_ON = ("aio", "activation_checkpointing", "flops_profiler", "comms_logger")
"""Sections that go into strategy.config as they stand."""
NOT_THERE = {
    "amp": "NVIDIA's Apex is no longer maintained: precision=bf16 or precision=fp16",
    "torch_autocast": "precision=bf16 and precision=fp16 run under torch's autocast",
    "autotuning": "batch.micro_items=auto finds the largest micro-batch; -m sweeps any key",
    "elasticity": "batch.items is the whole step: it stays on any number of processes",
    "curriculum_learning": "the order of items is the data hook's: docs/own_stream.md",
    "data_efficiency": "the order of items is the data hook's: docs/own_stream.md",
    "compression_training": "a change of the model: the model hook makes it",
    "progressive_layer_drop": "a change of the model: the model hook makes it",
    "quantize_training": "precision=fp8 computes in 8 bits",
    "weight_quantization": "not there",
    "eigenvalue": "not there",
    "sparse_attention": "a choice of the model: the model hook makes it",
    "tensor_parallel": "tensor parallelism is not there",
    "pipeline": "pipeline parallelism is not there",
    "hybrid_engine": "not there",
    "nebula": "checkpoint.asynchronous=true saves in the background",
    "zenflow": "not there",
    "monitor_config": "the group tracker",
    "comet": "a tracker of your own: docs/own_tracker.md",
}
"""Sections without a counterpart, and what does the job instead."""


def _tracker(value: object, values: Values) -> Outcome:
    chosen = [name for name in TRACKERS if is_on(values, f"{name}.enabled")]
    return becomes(("tracker", chosen)) if yes_no(value) else Outcome(remark="off")


def _uses_wandb(values: Values) -> bool:
    return is_on(values, "wandb.enabled")


WANDB: Mapping[str, Rule] = {
    "wandb.project": sets("tracker.wandb.project", text),
    "wandb.team": sets("tracker.wandb.entity", text),
    "wandb.group": sets("tracker.wandb.group", text),
}
REPORTS: Mapping[str, Rule] = {
    name: adds(f"strategy.config.{name}", yes_no)
    for name in ("wall_clock_breakdown", "memory_breakdown", "dump_state", "sparse_gradients")
}
LIBRARY: dict[str, Rule] = {
    "steps_per_print": needless("log.every_steps says how often the runner records"),
    **only_if(is_sharded, "a ZeRO stage above 0", REPORTS),
    **{f"{name}.enabled": _tracker for name in TRACKERS},
    "tensorboard.*": needless("event files are in the run's directory"),
    **only_if(_uses_wandb, "wandb.enabled", WANDB),
    "csv_monitor.*": needless("metrics.jsonl in the run's directory holds every metric"),
    **{f"{name}.*": missing(remark) for name, remark in NOT_THERE.items()},
    "compile.*": missing("compile.what=blocks, or model below stage 3"),
    "checkpoint.*": needless(CHECKPOINTS),
    "load_universal_checkpoint": needless(CHECKPOINTS),
    "use_node_local_storage": needless(CHECKPOINTS),
    "dataloader_drop_last": needless("a short last step of an epoch is divided by the items that it has"),
    "communication_data_type": needless(FOLLOWS),
    "data_types.*": needless(FOLLOWS),
    "seq_parallel_communication_data_type": missing("sequence parallelism is not there"),
    "use_data_before_expert_parallelism": missing("expert parallelism is not there"),
    "sequence_parallel_size": missing_unless(1, "sequence parallelism is not there"),
    **dict.fromkeys(
        (
            "prescale_gradients",
            "gradient_predivide_factor",
            "gradient_allreduce_op",
            "zero_allow_untested_optimizer",
            "zero_force_ds_cpu_optimizer",
            "disable_allgather",
        ),
        needless(DECIDED),
    ),
    **dict.fromkeys(("auto_cast", "disable_python_gc", "legacy_fusion"), needless("no effect here")),
    **dict.fromkeys(("timers.throughput.enabled", "timers.throughput.synchronized"), needless("the log has items/s")),
}
"""The rest of DeepSpeed's keys, by dotted name; a name that ends in .* stands for a whole section."""
