"""Batch, precision, optimizer and schedule of a DeepSpeed file."""

from typing import Any

from runner.migrate.deepspeed.zero import is_sharded
from runner.migrate.outcome import Change, Outcome, Rule, Setting, Values, becomes
from runner.migrate.rules import (
    chooses,
    if_on,
    is_on,
    limit,
    missing,
    missing_unless,
    needless,
    number,
    only_if,
    sets,
    size,
    whole,
    yes_no,
)

__all__ = ["AUTOMATIC", "TRAINING"]

TOTAL, MICRO, ACCUMULATION = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
AUTOMATIC = "auto"
"""Among the values, the names of those arguments that are auto."""
OUTER_PRECISION = "mixed_precision"
"""Of the Accelerate configuration that names the file; a file alone has none."""
LARGEST_POWER = 127
"""Of two, in float32."""
DERIVED = "follows from batch.items and batch.micro_items"
SCHEDULES = "deepspeed.runtime.lr_schedules."
OWN_PARAMS = ("lr", "betas", "eps", "weight_decay", "momentum")


def _items(value: object, values: Values) -> Outcome:
    return becomes(("batch.items", whole(value)))


def _micro_items(value: object, values: Values) -> Outcome:
    micro_items = ("batch.micro_items", whole(value))
    if TOTAL in values:
        return becomes(micro_items)
    count = ("batch.accumulate", size(values, ACCUMULATION))
    return becomes(
        ("batch.items", None), micro_items, count, remark="batch.items follows from processes and micro-batches"
    )


def _accumulate(value: object, values: Values) -> Outcome:
    count = whole(value)
    if MICRO in values:
        return Outcome(remark=DERIVED) if TOTAL in values else becomes(("batch.accumulate", count))
    if count == 1:
        return Outcome(remark="one, as by default")
    return becomes(("batch.accumulate", count), remark="batch.items is the whole step, over all micro-batches")


def _is_fp16(values: Values) -> bool:
    """Whether the file asks for fp16, or leaves that to the configuration around it, which does."""
    return is_on(values, "fp16.enabled", default=str(values.get(OUTER_PRECISION)).upper() == "FP16")


def _scale(value: object, values: Values) -> Outcome:
    if number(value) == 0:
        return Outcome(remark="it grows and shrinks by itself, as here")
    return Outcome(remark="a fixed loss scale is not there: it grows and shrinks by itself", is_missing=True)


def _power(value: object, values: Values) -> Outcome:
    power = whole(value)
    if not 0 <= power <= LARGEST_POWER:
        raise ValueError(f"must be from 0 to {LARGEST_POWER}.")
    return becomes(("precision.init_scale", 2.0**power))


FP16: dict[str, Rule] = {
    "fp16.loss_scale": _scale,
    "fp16.loss_scale_window": sets("precision.growth_interval", whole),
    "fp16.initial_scale_power": _power,
    "fp16.min_loss_scale": sets("precision.min_scale", number),
    "fp16.hysteresis": missing_unless(1, "not there: the scale shrinks at the first overflow", convert=whole),
    "fp16.consecutive_hysteresis": missing_unless(
        False, "not there: the scale shrinks at the first overflow", convert=yes_no
    ),
    "fp16.auto_cast": needless("the forward runs under torch's autocast"),
    "fp16.fp16_master_weights_and_grads": missing_unless(
        False, "not there: the optimizer's weights are float32", convert=yes_no
    ),
}
BF16: dict[str, Rule] = {
    f"bf16.{name}": needless("precision=bf16_pure keeps weights and state in 16 bits; precision=bf16 does not")
    for name in ("bf16_master_weights_and_grads", "bf16_optimizer_states")
}
BF16 |= {
    "bf16.enabled": if_on(becomes(("precision", "bf16"))),
    "bf16.immediate_grad_update": needless("gradients are added up in float32"),
    "bf16.check_overflow": needless("guard.non_finite says what happens to a gradient that is not finite"),
}


def _optimizer(value: object, values: Values) -> Outcome:
    """The optimizer by its name; DeepSpeed's Adam is AdamW unless adam_w_mode is off."""
    plain = not is_on(values, "optimizer.params.adam_w_mode", default=True)
    # DeepSpeed's default is no weight decay, torch's is 0.01.
    decays = "optimizer.params.torch_adam" in values or "optimizer.params.weight_decay" in {
        *values,
        *values[AUTOMATIC],
    }
    decay = () if decays else (("optimizer.weight_decay", 0.0),)
    adamw = becomes(("optimizer", "adamw"), *decay)
    adam = becomes(("optimizer", "adamw"), ("optimizer._target_", "torch.optim.Adam"), *decay)
    own = {name.upper(): becomes(("strategy.own_optimizer", name)) for name in ("Adagrad", "Lamb", "Lion", "Muon")}
    absent = Outcome(
        remark="not there under ZeRO: strategy=ddp strategy.comm_hook=powersgd sends less", is_missing=True
    )
    others = dict.fromkeys(("ONEBITADAM", "ZEROONEADAM", "ONEBITLAMB"), absent)
    sgd = becomes(("optimizer", "sgd"))
    found = chooses({"ADAMW": adamw, "ADAM": adam if plain else adamw, "SGD": sgd, **own, **others})(value, values)
    if found in own.values() and not is_sharded(values):
        return Outcome(remark="DeepSpeed's own optimizers need a ZeRO stage above 0", is_missing=True)
    return found


def _params(name: str) -> Rule:
    return sets(f"optimizer.{name}", _two if name == "betas" else number)


def _two(value: Any) -> list[float | int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("must be a list of two numbers.")
    return [number(one) for one in value]


def _scheduler(value: object, values: Values) -> Outcome:
    """DeepSpeed's own schedule where numbers are given, since its warm-up is logarithmic; else the nearest of ours."""
    nearest = {
        "WarmupLR": "constant",
        "WarmupDecayLR": "linear",
        "WarmupCosineLR": "cosine",
        "OneCycle": "cosine",
        "LRRangeTest": "linear",
    }
    found = chooses({name.upper(): Outcome(remark=name) for name in nearest})(value, values).remark
    params = _scheduler_params(values)
    if not params:
        rule = "its numbers are auto: run.steps is the length, schedule.warmup_steps the warm-up, which is linear here"
        return becomes(("schedule", nearest[found]), remark=rule)
    removed = (
        Setting(f"schedule.{name}", change=Change.REMOVE) for name in ("warmup_steps", "warmup_start", "final_factor")
    )
    added = (Setting(f"schedule.{name}", given, change=Change.ADD) for name, given in params.items())
    target = becomes(("schedule", "cosine"), ("schedule._target_", SCHEDULES + found))
    return Outcome((*target.settings, *removed, *added), "DeepSpeed's own, stepped once for each optimizer step")


def _scheduler_params(values: Values) -> dict[str, Any]:
    prefix = "scheduler.params."
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


TRAINING: dict[str, Rule] = {
    TOTAL: _items,
    MICRO: _micro_items,
    ACCUMULATION: _accumulate,
    "gradient_clipping": limit("clip.norm"),
    "fp16.enabled": if_on(becomes(("precision", "fp16"))),
    **only_if(_is_fp16, "fp16", FP16),
    **BF16,
    **{f"bfloat16.{name.removeprefix('bf16.')}": rule for name, rule in BF16.items()},
    "optimizer.type": _optimizer,
    **{f"optimizer.params.{name}": _params(name) for name in OWN_PARAMS},
    "optimizer.params.torch_adam": needless("the optimizer is torch's"),
    "optimizer.params.adam_w_mode": needless("says which optimizer it is"),
    "optimizer.params.*": missing("no key here; optimizer._target_=… takes any class with its arguments"),
    "optimizer.legacy_fusion": needless("the optimizer is torch's"),
    "scheduler.type": _scheduler,
    "scheduler.params.*": needless("see the scheduler's type"),
}
"""What a DeepSpeed file says of the training itself, by dotted name."""
