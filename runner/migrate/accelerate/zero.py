"""The section deepspeed_config: ZeRO as `accelerate config` asks for it, without a file of DeepSpeed's own."""

from runner.migrate.accelerate.situation import is_deepspeed, num_machines, zero_stage
from runner.migrate.accelerate.strategy import strategy
from runner.migrate.outcome import Outcome, Rule, Values, becomes
from runner.migrate.rules import if_on, limit, missing, names, needless, only_if, sets, text, whole, yes_no

__all__ = ["DEEPSPEED", "accumulate", "hosts"]

UNSET = "none"
PLACES = ("none", "cpu", "nvme")
ONE_MICRO_BATCH = "one micro-batch, as by default; batch.items and batch.micro_items say how many"


def accumulate(value: object, values: Values) -> Outcome:
    """Micro-batches, into which the items of a step are divided."""
    micro_batches = whole(value)
    if micro_batches <= 1:
        return Outcome(remark=ONE_MICRO_BATCH)
    remark = "batch.items is the whole step: batch size × processes × micro-batches"
    return becomes(("batch.accumulate", micro_batches), remark=remark)


def hosts(value: object, values: Values) -> Outcome:
    """A file with the names of the machines."""
    if num_machines(values) == 1:
        return Outcome(remark="one machine; for several, launch=nodes launch.hostfile=FILE")
    return becomes(("launch.hostfile", text(value)), remark="one line a machine: HOST, or HOST slots=N")


def _offload(what: str) -> Rule:
    """Where state is kept.

    Args:
        what: optimizer | param.
    """

    def rule(value: object, values: Values) -> Outcome:
        place = text(value).lower()
        if place not in PLACES:
            raise ValueError(f"is not one of {', '.join(PLACES)}.")
        if what == "param" and place != UNSET and zero_stage(values) != 3:
            return Outcome(remark="has no effect below stage 3, which alone shards parameters")
        return becomes((f"strategy.offload_{what}", place))

    return rule


def _nvme_path(what: str) -> Rule:
    """The directory for an offload to a disk.

    Args:
        what: optimizer | param.
    """

    def rule(value: object, values: Values) -> Outcome:
        if str(values.get(f"offload_{what}_device")).lower() != "nvme" or str(value).lower() == UNSET:
            return Outcome(remark=f"has no effect without offload_{what}_device: nvme")
        return becomes((f"strategy.{what}_nvme_path", text(value)))

    return rule


def _is_sharded(values: Values) -> bool:
    return zero_stage(values) > 0


def _is_stage_3(values: Values) -> bool:
    return zero_stage(values) == 3


def _stage(value: object, values: Values) -> Outcome:
    if whole(value) not in (0, 1, 2, 3):
        raise ValueError("must be 0, 1, 2 or 3.")
    return strategy(values)


DEEPSPEED = only_if(
    is_deepspeed,
    "distributed_type: DEEPSPEED",
    {
        "zero_stage": _stage,
        "deepspeed_config_file": needless("its keys follow below"),
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": limit("clip.norm"),
        **only_if(
            _is_sharded,
            "a ZeRO stage above 0",
            {
                "offload_optimizer_device": _offload("optimizer"),
                "offload_param_device": _offload("param"),
                "offload_optimizer_nvme_path": _nvme_path("optimizer"),
                "offload_param_nvme_path": _nvme_path("param"),
            },
        ),
        **only_if(
            _is_stage_3,
            "ZeRO stage 3",
            {
                "zero3_init_flag": sets("strategy.zero_init", yes_no),
                "zero3_save_16bit_model": needless("runner export DIR --dtype bfloat16, whenever it is wanted"),
                "deepspeed_moe_layer_cls_names": sets("strategy.moe_leaf_modules", names),
            },
        ),
        "deepspeed_hostfile": hosts,
        "deepspeed_exclusion_filter": missing("leave the line of a machine out of the hostfile"),
        "deepspeed_inclusion_filter": missing("leave the lines of other machines out of the hostfile"),
        "deepspeed_multinode_launcher": needless("pdsh, srun or a terminal on each machine starts the same command"),
        "enable_msamp": if_on(
            Outcome(remark="MS-AMP is no longer maintained: precision=fp8", is_missing=True),
        ),
    },
)
"""The section deepspeed_config."""
