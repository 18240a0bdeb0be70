"""Builds what a spec describes: calls the hooks and lets the strategy place what they return."""

import logging
from dataclasses import replace
from functools import partial

from torch.nn import Module

from runner.config import hooks, provenance
from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.data.datasets import check_agreement, check_data
from runner.data.rounds import RoundsSource
from runner.data.source import open_source
from runner.engine.fit_batch import Rehearsal, fit_batch
from runner.engine.listeners import build_listeners
from runner.engine.models import look_at_nothing
from runner.engine.placing import prepare
from runner.engine.training import Training
from runner.errors import DataError
from runner.protocols import Data, Trainable, World
from runner.storage.pretrained import save_model_config
from runner.world.hook_ranks import HookRanks
from runner.world.rehearsal import rehearsal
from runner.world.seeds import mix, seed_all, set_deterministic

logger = logging.getLogger(__name__)
TRAINING_SEED = 2
"""Separates the seed of random numbers in training from other seeds derived from run.seed."""


def open_data(spec: RunSpec, world: World) -> tuple[HookRanks, Data]:
    """Say which device this is, make torch deterministic if that is asked for, and call the data hook. Collective.

    Returns:
        The ranks for hooks that ask for them, and what the data hook returned.
    """
    if spec.run.deterministic:
        set_deterministic()
    logger.info("device: %s, rank %d of %d", world.device, world.rank, world.size)
    ranks = HookRanks(world)
    return ranks, _call_data(spec, world, ranks)


def _call_data(spec: RunSpec, world: World, ranks: HookRanks) -> Data:
    """Call the data hook, on rank 0 first so that files it prepares exist for the other ranks. Collective.

    One that asks for the ranks is called on all of them at once: it says itself which goes first.
    """
    call = hooks.resolve(spec.data, spec.import_roots)
    if hooks.asks(spec.data, spec.import_roots):
        seed_all(spec.run.seed)
        data = call(**{hooks.WORLD: ranks.all})
    else:
        with world.main_first():
            seed_all(spec.run.seed)
            data = call()
    checked = check_data(data, spec.data.target, evaluation=spec.eval)
    if checked.eval is not None and spec.loss is None:
        rule = "but the recipe's phases have loss hooks of their own, and there is none to evaluate with"
        raise DataError(f"{spec.data.target} returned an evaluation set, {rule}. Add `loss`, or return no eval.")
    check_agreement(checked, world)
    return checked


def build_training(
    spec: RunSpec, run_dir: RunDir, data: Data, world: World, ranks: HookRanks, *, restores: bool = False
) -> Training:
    """Build everything that a checkpoint contains, at step 0. Collective.

    Args:
        restores: a checkpoint is loaded next. Initial weights may then have no values.

    Raises:
        HookError, ModelError: the model hook returned something that cannot be trained.
    """
    see = partial(_report_model, run_dir if world.is_main else None)
    trainable, turns = prepare(spec, ranks, world, see=see, restores=restores)
    listeners = build_listeners(spec.callback, ranks)
    random_world = world.along(*world.axes.random)
    seed_all(mix(spec.run.seed, TRAINING_SEED, random_world.rank))  # dropout and the like
    source = open_source(spec, data, world.along(*world.axes.data))
    rounds = max((phase.rounds for phase in spec.phases.values()), default=1)
    return Training(
        trainable=trainable,
        schedules={
            model: (spec.models[model] if spec.models else spec).schedule.build(optimizer, steps=spec.run.steps)
            for model, optimizer in trainable.optimizers.items()
        },
        source=source if rounds == 1 else RoundsSource(source, rounds=rounds),
        turns=turns,
        listeners=listeners,
        random_world=random_world,
        seed=spec.run.seed,
    )


def with_fitting_batch(spec: RunSpec, run_dir: RunDir, data: Data, world: World) -> RunSpec:
    """The spec with the largest micro_items that fits, which is recorded in provenance.json. Collective."""
    without_workers = replace(spec, loader=replace(spec.loader, workers=0))
    rehearsal_world = rehearsal(world)

    def rehearse() -> Trainable:
        return prepare(spec, HookRanks(rehearsal_world), rehearsal_world, see=look_at_nothing)[0]

    readers = world.along(*world.axes.data)
    steps = Rehearsal(
        prepare=rehearse,
        batches=lambda batch: next(iter(open_source(replace(without_workers, batch=batch), data, readers))),
    )
    fitting = fit_batch(spec, world, steps)
    if world.is_main:
        found = ("items", "micro_items", "accumulate", "auto")
        provenance.note(run_dir.provenance, "batch", {name: vars(fitting.batch)[name] for name in found})
    return fitting


def _report_model(run_dir: RunDir | None, model: Module, name: str) -> None:
    """Log the size of a model; keep its own configuration, if it has one, for exports."""
    sizes = {
        what: sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad or what == "all")
        for what in ("all", "trained")
    }
    # A strategy may have divided the parameters while they were made; then none is here as a whole.
    size = f" with {sizes['all']:,} parameters, {sizes['trained']:,} of them trained" if sizes["all"] else ""
    logger.info("%s: %s%s", name, type(model).__name__, size)
    if run_dir is not None:
        save_model_config(run_dir.model_config(name), model)
