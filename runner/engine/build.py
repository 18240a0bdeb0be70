"""Builds what a spec describes: calls the hooks and lets the strategy place what they return."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch.nn import Module

from runner.config import hooks, provenance
from runner.config.run_dir import RunDir
from runner.config.run_spec import Hook, RunSpec
from runner.data.datasets import check_agreement, check_data
from runner.data.source import open_source
from runner.engine.fit_batch import Rehearsal, fit_batch
from runner.engine.listeners import build_listeners
from runner.engine.training import Training
from runner.errors import HookError, ModelError
from runner.model.shape import apply_compile, apply_recompute
from runner.protocols import Builder, Data, Trainable, World
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
    if hooks.asks("data", spec.data, spec.import_roots):
        seed_all(spec.run.seed)
        data = call(**{hooks.WORLD: ranks.all})
    else:
        with world.main_first():
            seed_all(spec.run.seed)
            data = call()
    checked = check_data(data, spec.data.target, evaluation=spec.eval)
    check_agreement(checked, world)
    return checked


def build_training(spec: RunSpec, run_dir: RunDir, data: Data, world: World, ranks: HookRanks) -> Training:
    """Build everything that a checkpoint contains, at step 0. Collective.

    Raises:
        HookError, ModelError: the model hook returned something that cannot be trained.
    """
    see = partial(_report_model, run_dir.model_config if world.is_main else None)
    trainable = spec.strategy.prepare(builder_of(spec, ranks, see=see), world)
    listeners = build_listeners(spec.callback, ranks)
    random_world = world.along(*world.axes.random)
    seed_all(mix(spec.run.seed, TRAINING_SEED, random_world.rank))  # dropout and the like
    return Training(
        trainable=trainable,
        schedules={
            model: spec.schedule.build(optimizer, steps=spec.run.steps)
            for model, optimizer in trainable.optimizers.items()
        },
        source=open_source(spec, data, world.along(*world.axes.data)),
        listeners=listeners,
        random_world=random_world,
        seed=spec.run.seed,
    )


def with_fitting_batch(spec: RunSpec, run_dir: RunDir, data: Data, world: World) -> RunSpec:
    """The spec with the largest micro_items that fits, which is recorded in provenance.json. Collective."""
    without_workers = replace(spec, loader=replace(spec.loader, workers=0))
    rehearsal_world = rehearsal(world)

    def prepare() -> Trainable:
        return spec.strategy.prepare(builder_of(spec, HookRanks(rehearsal_world)), rehearsal_world)

    readers = world.along(*world.axes.data)
    steps = Rehearsal(
        prepare=prepare,
        batches=lambda batch: next(iter(open_source(replace(without_workers, batch=batch), data, readers))),
    )
    fitting = fit_batch(spec, world, steps)
    if world.is_main:
        found = ("items", "micro_items", "accumulate", "auto")
        provenance.note(run_dir.provenance, "batch", {name: vars(fitting.batch)[name] for name in found})
    return fitting


def _ignore(model: Module) -> None:
    """Look at a model, and do nothing."""


def builder_of(spec: RunSpec, ranks: HookRanks, *, see: Callable[[Module], None] = _ignore) -> Builder:
    """The functions and options from which a strategy builds a model and its optimizer.

    Args:
        ranks: given to hooks that ask for them.
        see: called with the first model that the hook returns, as it returns it.
    """
    return Builder(
        build_model=partial(_call_model, spec, ranks, iter([see])),
        recompute=partial(apply_recompute, spec=spec),
        compile=partial(apply_compile, spec=spec),
        build_optimizer=partial(spec.optimizer.build, items=spec.batch.items),
        loss=micro_batch_hook("loss", spec.loss, spec, ranks),
        precision=spec.precision,
        clip=spec.clip,
    )


def micro_batch_hook(key: str, hook: Hook, spec: RunSpec, ranks: HookRanks) -> Callable[[Module, Any, int], Any]:
    """A hook that is called with a model and a batch, of which so many items count.

    Args:
        key: of the hook in a recipe: loss or predict.
    """
    call = hooks.resolve(hook, spec.import_roots)
    if not hooks.asks(key, hook, spec.import_roots):
        return lambda model, batch, items: call(model, batch)
    counting, filler = ranks.all, ranks.filler
    return lambda model, batch, items: call(model, batch, world=counting if items else filler)


def _report_model(config_file: Path | None, model: Module) -> None:
    """Log the size of a model; keep its own configuration, if it has one, for exports."""
    sizes = {
        what: sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad or what == "all")
        for what in ("all", "trained")
    }
    # A strategy may have divided the parameters while they were made; then none is here as a whole.
    size = f" with {sizes['all']:,} parameters, {sizes['trained']:,} of them trained" if sizes["all"] else ""
    logger.info("model: %s%s", type(model).__name__, size)
    if config_file is not None:
        save_model_config(config_file, model)


def _call_model(spec: RunSpec, ranks: HookRanks, see: Iterator[Callable[[Module], None]]) -> Module:
    """Call the model hook with the same seed on every rank, so that initial weights are equal by construction."""
    offered = {hooks.WORLD: ranks.all} if hooks.asks("model", spec.model, spec.import_roots) else {}
    seed_all(spec.run.seed)
    model = hooks.resolve(spec.model, spec.import_roots)(**offered)
    if not isinstance(model, Module):
        raise HookError(f"{spec.model.target} returned a {type(model).__name__}, but must return a torch.nn.Module.")
    if not any(True for _ in model.parameters()):
        raise ModelError(f"{spec.model.target} returned a model without parameters: there is nothing to train.")
    next(see, _ignore)(model)
    spec.precision.convert(model, spec.hardware)
    return model
