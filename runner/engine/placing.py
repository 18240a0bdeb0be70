"""Builds the model or models of a run and lets strategies place them."""

from dataclasses import replace

from runner.config.run_spec import RunSpec
from runner.engine.models import See, builder_of
from runner.model.named import Call
from runner.protocols import Placed, Trainable, World
from runner.teams.phases import Turns
from runner.world.hook_ranks import HookRanks


def prepare(
    spec: RunSpec, ranks: HookRanks, world: World, *, see: See, restores: bool = False
) -> tuple[Trainable, Turns | None]:
    """Build, place and prepare the model or models of a run. Collective.

    Args:
        restores: weights are loaded before anything else is done with the models.

    Returns:
        What the run trains and, if it has phases, the updates of a step.

    Raises:
        HookError, ModelError: a model hook returned something that cannot be trained.
    """
    if not spec.models:
        return spec.strategy.prepare(builder_of(spec, ranks, see=see, restores=restores), world), None
    from runner.engine.several import prepare_several

    return prepare_several(spec, ranks, world, see=see)


def place(spec: RunSpec, ranks: HookRanks, world: World, *, call: Call | None = None, restores: bool = False) -> Placed:
    """Build and place the model or models of a run, without optimizers. Collective.

    Args:
        call: what evaluations call in place of the loss hook.
        restores: weights are loaded before anything else is done with the models.
    """
    if not spec.models:
        builder = builder_of(spec, ranks, restores=restores)
        return spec.strategy.place(builder if call is None else replace(builder, loss=call, predicts=True), world)
    from runner.engine.several import place_several

    return place_several(spec, ranks, world, call=call)
