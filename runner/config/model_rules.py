"""Rules between the models of a run, and between them and the rest of its declaration."""

from collections.abc import Iterator
from dataclasses import replace

from runner.config.models import OWN, teams
from runner.config.nearest import listed
from runner.config.run_spec import NonFinite, RunSpec
from runner.config.unknown import as_far_as_known
from runner.errors import Fault
from runner.protocols import Axis

__all__ = ["own_part_faults", "several_faults"]

SHARED_BY_A_TEAM = ("strategy", "precision")
"""What models that are updated together must have in common: one backward goes through all of them."""


def own_part_faults(spec: RunSpec) -> Iterator[Fault]:
    """The faults of parts that models have of their own, under the models' keys."""
    for name, one in spec.models.items():
        view = spec.of_model(name)
        for group in OWN:
            part = vars(one)[group]
            if part is not vars(spec)[group]:
                for fault in as_far_as_known(lambda part=part, view=view: part.check(view)):  # type: ignore[misc]
                    own = fault.key == group or fault.key.startswith(f"{group}.")
                    yield replace(fault, key=f"models.{name}.{fault.key}") if own else fault


def several_faults(spec: RunSpec) -> Iterator[Fault]:
    """The faults of several models together, and of what does not work with several."""
    for team in teams(spec.models, spec.phases) if spec.models else ():
        for group in SHARED_BY_A_TEAM:
            first, *others = (vars(spec.models[name])[group] for name in team)
            for name, part in zip(team[1:], others, strict=True):
                if part != first:
                    rule = f"differs from that of {team[0]}, which is updated together with {name}: one backward goes"
                    way_out = f"through both. Give both the same {group}, or update them in phases of their own."
                    yield Fault(key=f"models.{name}.{group}", message=f"{rule} {way_out}")
    for name, one in spec.models.items():
        yield from _axes_faults(spec, name, own=one.strategy is not spec.strategy)
    if spec.phases and spec.batch.auto:
        rule = "auto tries one step of one loss, and this recipe has phases. Give the number of items."
        yield Fault(key="batch.micro_items", message=rule)
    if spec.phases and spec.guard.non_finite is NonFinite.SKIP:
        rule = "skip leaves out a whole step, but earlier phases of a step have updated their models by then."
        yield Fault(key="guard.non_finite", message=f"{rule} Use stop or ignore.")


def _axes_faults(spec: RunSpec, name: str, *, own: bool) -> Iterator[Fault]:
    key = f"models.{name}.strategy" if own else "strategy"
    try:
        axes = spec.models[name].strategy.axes(spec.world_size)
    except ValueError as refused:
        yield Fault(key=key, message=str(refused))
        return
    other = [str(axis) for axis in axes.names if axis not in (Axis.REPLICATE, Axis.SHARD)]
    if other or axes.independent:
        what = f"along {listed(other)}" if other else "in replicas that take steps of their own"
        rule = f"divides a model {what}, which works for a run with one model."
        yield Fault(key=key, message=f"{rule} Use single, ddp, fsdp or a deepspeed strategy.")
