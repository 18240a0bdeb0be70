"""From a spec to what is trained: call the hooks, let the strategy place what they return."""

from dataclasses import replace
from functools import partial

from torch.nn import Module

from runner.config import hooks, provenance
from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.data.datasets import check_data
from runner.data.source import open_source
from runner.engine.fit_batch import Rehearsal, fit_batch
from runner.engine.listeners import build_listeners
from runner.engine.training import Training
from runner.errors import HookError, ModelError
from runner.model.shape import apply_compile, apply_recompute
from runner.protocols import Builder, Data, Trainable, World
from runner.world.rehearsal import rehearsal
from runner.world.seeds import mix, seed_all

DRAWS = 2
"""Distinguishes the seed of what ranks draw in training from other seeds derived from run.seed."""


def call_data(spec: RunSpec, world: World) -> Data:
    """The data hook: first on rank 0, so that what it prepares on disk is there for the others. Collective."""
    with world.main_first():
        seed_all(spec.run.seed)
        data = hooks.resolve(spec.data, spec.import_roots)()
    return check_data(data, spec.data.target, wants_eval=spec.eval.every_steps is not None)


def build_training(spec: RunSpec, data: Data, world: World) -> Training:
    """Everything that a checkpoint holds, at step 0. Collective.

    Raises:
        HookError, ModelError: the model hook returned something that cannot be trained.
    """
    trainable = spec.strategy.prepare(builder_of(spec), world)
    listeners = build_listeners(spec.callback)
    random_world = world.along(*world.axes.random)
    seed_all(mix(spec.run.seed, DRAWS, random_world.rank))  # dropout and the like
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


def fitted(spec: RunSpec, run_dir: RunDir, data: Data, world: World) -> RunSpec:
    """The spec with micro_items that fit; what was found is noted in provenance.json. Collective."""
    alone = replace(spec, loader=replace(spec.loader, workers=0))
    imagined = rehearsal(world)

    def prepare() -> Trainable:
        return spec.strategy.prepare(builder_of(spec), imagined)

    readers = world.along(*world.axes.data)
    rehearsed = Rehearsal(
        prepare=prepare,
        batches=lambda batch: next(iter(open_source(replace(alone, batch=batch), data, readers))),
    )
    found = fit_batch(spec, world, rehearsed)
    if world.is_main:
        provenance.note(run_dir.provenance, "batch", {**vars(found.batch)})
    return found


def builder_of(spec: RunSpec) -> Builder:
    """What a strategy builds from."""
    return Builder(
        build_model=partial(_call_model, spec),
        recompute=partial(apply_recompute, spec=spec),
        compile=partial(apply_compile, spec=spec),
        build_optimizer=partial(spec.optimizer.build, items=spec.batch.items),
        loss=hooks.resolve(spec.loss, spec.import_roots),
        precision=spec.precision,
        clip=spec.clip,
    )


def _call_model(spec: RunSpec) -> Module:
    """The model hook, seeded alike on every rank, so that initial weights are equal by construction."""
    seed_all(spec.run.seed)
    model = hooks.resolve(spec.model, spec.import_roots)()
    if not isinstance(model, Module):
        raise HookError(f"{spec.model.target} returned a {type(model).__name__}, but must return a torch.nn.Module.")
    if not any(True for _ in model.parameters()):
        raise ModelError(f"{spec.model.target} returned a model without parameters: there is nothing to train.")
    spec.precision.convert(model, spec.hardware)
    return model
