"""Rules across sections and parts, and the ranges of numbers in sections."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from runner.config.nearest import did_you_mean
from runner.config.of_blocks import Compiled, Recompute
from runner.config.run_spec import Batch, Cut, Eval, Loader, NonFinite, Reader, Run, RunSpec
from runner.config.secret import Secret, is_reference
from runner.errors import Fault
from runner.protocols import Clip, CompilesSteps, HandsOverSecrets, Launcher, UpdatesInGraph

__all__ = [
    "POSITIVE",
    "SMALLEST",
    "BatchKeys",
    "clip_faults",
    "compile_faults",
    "divide",
    "eval_faults",
    "group_faults",
    "loader_faults",
    "range_faults",
    "range_of",
    "run_faults",
    "secret_faults",
]

AUTO = "auto"
"""The value of batch.micro_items that means: as many as fit into memory."""
ASKED = {"hardware": "processes", "launch": "nodes", "strategy": "axes"}
"""What the division of a batch asks of parts."""
SMALLEST = {
    "batch.items": 1,
    "batch.micro_items": 1,
    "batch.accumulate": 1,
    "batch.micro_tokens": 1,
    "run.steps": 1,
    "run.seed": 0,
    "run.stop_at_step": 1,
    "loader.workers": 0,
    "loader.prefetch": 1,
    "eval.every_steps": 1,
    "eval.micro_items": 1,
    "log.every_steps": 1,
    "guard.max_skipped": 1,
    "activation_checkpointing.every": 1,
}
"""The smallest value of each whole number of a section, where it is not null."""
POSITIVE = ("clip.norm", "clip.value")
"""Numbers of a section that must be above 0, where they are not null."""


@dataclass(frozen=True, kw_only=True)
class BatchKeys:
    """The section `batch` as it is given, before null values are derived."""

    items: int | None = None
    """Items of one optimizer step over all ranks; null = micro_items × accumulate × data ranks."""
    micro_items: int | Literal["auto"] | None = None
    """Items that one rank forwards at once; null = items / data ranks, auto = as many as fit into memory."""
    accumulate: int | None = None
    """Micro-batches of one rank in a step; null = items / (micro_items × data ranks)."""
    cut: Cut = Cut.EVEN
    """Which items of a step go into one micro-batch. It changes how much is padded, and no gradient."""
    micro_tokens: int | None = None
    """Most tokens that one rank forwards at once, padding included; null = no limit but micro_items."""


def range_faults(section: str, values: Mapping[str, Any]) -> Iterator[Fault]:
    """A fault for each number of a section that is too small."""
    for name, value in values.items():
        least = SMALLEST.get(f"{section}.{name}")
        if least is not None and isinstance(value, int) and value < least:
            yield Fault(
                key=f"{section}.{name}",
                message=f"{value} is too small: it must be at least {least}.",
            )


def range_of(key: str) -> str:
    """The range of a number of a section, in words; empty if it may be any."""
    return f"at least {SMALLEST[key]}" if key in SMALLEST else "above 0" if key in POSITIVE else ""


def group_faults(group: str, part: Any) -> Iterator[Fault]:
    """A fault for a part of another group, where reading the rest asks the part for something."""
    asked = ASKED.get(group)
    if part is not None and asked is not None and asked not in dir(part):
        rule = f"{type(part).__name__} is no option of this group: it has no {asked}. Choose one: {group}=<option>"
        yield Fault(key=group, message=rule)


def clip_faults(clip: Clip) -> Iterator[Fault]:
    """A fault for each limit that no gradient can satisfy."""
    for key in POSITIVE:
        value = getattr(clip, key.rpartition(".")[2])  # of one that could not be built, this ends the rule
        if value is not None and not value > 0:
            yield Fault(
                key=key,
                message=f"{value} must be above 0. Use null to leave gradients as they are.",
            )


def run_faults(run: Run) -> Iterator[Fault]:
    """Faults of lengths that contradict each other."""
    if run.stop_at_step is not None and run.stop_at_step > run.steps:
        rule = f"{run.stop_at_step} is beyond run.steps={run.steps}. Use at most {run.steps}, or null for all steps."
        yield Fault(key="run.stop_at_step", message=rule)


def loader_faults(loader: Loader, batch: Batch) -> Iterator[Fault]:
    """A fault where ranks that try out a batch, each by itself, would wait for rank 0 to read it."""
    if loader.source is Reader.RANK_0 and batch.auto:
        rule = "rank_0 cannot be used with batch.micro_items=auto: each rank tries by itself what fits into its memory."
        yield Fault(key="loader.source", message=f"{rule} Give batch.micro_items, or use each_rank.")


def compile_faults(spec: RunSpec) -> Iterator[Fault]:
    """What cannot be part of a step that is compiled as a whole."""
    if spec.compile.what is not Compiled.STEP:
        return
    if spec.models:
        yield _outside_the_step("models", "several models", "compile.what=model")
        return
    if not isinstance(spec.strategy, CompilesSteps):
        what = "what this strategy exchanges within a step"
        yield _outside_the_step("strategy", what, "strategy=single, strategy=ddp or compile.what=model")
    if not isinstance(spec.optimizer, UpdatesInGraph):
        yield _outside_the_step("optimizer", "this optimizer", "optimizer=adamw, optimizer=sgd or compile.what=model")
    if spec.precision.scaler().scales:
        yield _outside_the_step("precision", "a loss scale, which skips steps", "precision=bf16 or fp32")
    if spec.activation_checkpointing.what is not Recompute.NONE:
        what = "recomputation, which the compiler decides on itself"
        yield _outside_the_step("activation_checkpointing.what", what, "none, or compile.what=blocks")
    if spec.guard.non_finite is NonFinite.SKIP:
        what = "a decision to skip it: the weights have changed when its gradient is known"
        yield _outside_the_step("guard.non_finite", what, "stop or ignore")
    if spec.batch.auto:
        what = "a batch whose size is tried out with gradients alone"
        yield _outside_the_step("batch.micro_items", what, "a number of items")


def _outside_the_step(key: str, what: str, way_out: str) -> Fault:
    return Fault(
        key=key, message=f"compile.what=step compiles the whole step, which cannot contain {what}. Use {way_out}."
    )


def eval_faults(evaluation: Eval, metrics: Iterable[str]) -> Iterator[Fault]:
    """A fault for each metric of an evaluation set that the recipe does not have.

    Args:
        metrics: the names in the group `metric`.
    """
    known = list(metrics)
    for name, one in evaluation.sets.items():
        for metric in one.metrics or ():
            if metric not in known:
                there = f"It has: {', '.join(known)}." if known else "It has none."
                rule = f"the recipe has no metric {metric!r}.{did_you_mean(metric, known)} {there}"
                yield Fault(key=f"eval.sets.{name}.metrics", message=f"{rule} Add it: metric=[{metric}]")


def secret_faults(launch: Launcher, secrets: Mapping[str, Secret]) -> Iterator[Fault]:
    """A fault for each secret that a process elsewhere could not get: no file holds it."""
    if isinstance(launch, HandsOverSecrets):
        return
    for key, secret in secrets.items():
        if not is_reference(secret.source):
            rule = f"the value, from {secret.source}, is a secret, which no file holds for a job that runs elsewhere."
            yield Fault(key=key, message=f"{rule} Let the job take it from its environment: {key}='${{oc.env:NAME}}'")


def divide(keys: BatchKeys, *, data_ranks: int) -> Batch | Fault:
    """Derive null values: items = micro_items × accumulate × data ranks.

    Args:
        keys: all at least 1 where they are not null.
        data_ranks: ranks among which the strategy divides the items of a step.
    """
    if keys.micro_tokens is not None and keys.cut is Cut.EVEN:
        rule = "limits micro-batches of items whose lengths are known. Add batch.cut=by_length, or use null."
        return Fault(key="batch.micro_tokens", message=f"{keys.micro_tokens} {rule}")
    if isinstance(keys.micro_items, str):
        divided = _divide_automatically(keys, data_ranks=data_ranks)
    else:
        divided = _divide(keys.items, keys.micro_items, keys.accumulate, data_ranks=data_ranks)
    return divided if isinstance(divided, Fault) else replace(divided, cut=keys.cut, micro_tokens=keys.micro_tokens)


def _divide(items: int | None, micro_items: int | None, accumulate: int | None, *, data_ranks: int) -> Batch | Fault:
    if items is None:
        if micro_items is None or accumulate is None:
            missing = "batch.micro_items" if micro_items is None else "batch.accumulate"
            is_given = micro_items is not None or accumulate is not None
            rule = f"must be given, or also {missing}, so that it can be derived." if is_given else ""
            return Fault(
                key="batch.items",
                message=rule or "must be given: the items of one optimizer step over all ranks.",
            )
        return Batch(
            items=micro_items * accumulate * data_ranks,
            micro_items=micro_items,
            accumulate=accumulate,
        )
    if micro_items is None:
        unit = data_ranks * (accumulate or 1)
        what = f"data ranks = {data_ranks}" if accumulate is None else f"accumulate × data ranks = {unit}"
        if items % unit:
            return Fault(key="batch.items", message=_not_a_multiple(items, unit, what))
        return Batch(items=items, micro_items=items // unit, accumulate=accumulate or 1)
    unit = micro_items * data_ranks
    if items % unit:
        what = f"micro_items × data ranks = {micro_items} × {data_ranks} = {unit}"
        return Fault(key="batch.items", message=_not_a_multiple(items, unit, what))
    if accumulate is not None and accumulate != items // unit:
        rule = f"{accumulate} disagrees with items / (micro_items × data ranks) = {items} / {unit} = {items // unit}."
        return Fault(
            key="batch.accumulate",
            message=f"{rule} Use {items // unit}, or null to have it derived.",
        )
    return Batch(items=items, micro_items=micro_items, accumulate=items // unit)


def _divide_automatically(keys: BatchKeys, *, data_ranks: int) -> Batch | Fault:
    """The largest micro-batch, which the run then reduces to what fits."""
    if keys.items is None or keys.accumulate is not None:
        rule = "finds how many of batch.items fit into memory. Give batch.items, and leave batch.accumulate null."
        return Fault(key="batch.micro_items", message=f"{AUTO} {rule}")
    if keys.items % data_ranks:
        return Fault(key="batch.items", message=_not_a_multiple(keys.items, data_ranks, f"data ranks = {data_ranks}"))
    return Batch(items=keys.items, micro_items=keys.items // data_ranks, accumulate=1, auto=True)


def _not_a_multiple(items: int, unit: int, what: str) -> str:
    below = items // unit * unit
    nearest = f"{below} or {below + unit}" if below else f"{unit}"
    return f"{items} is not a multiple of {what}. Use {nearest}."
