"""From a spec to a session: call the hooks, let the strategy place what they return, open what records."""

from dataclasses import replace
from functools import partial

from torch.nn import Module

from runner.config import hooks, provenance
from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.data.datasets import check_data
from runner.data.source import open_source
from runner.engine.console import open_console
from runner.engine.fit_batch import Rehearsal, fit_batch
from runner.engine.non_finite.guard import open_guard
from runner.engine.session import Session, Stopping
from runner.errors import HookError
from runner.model.shape import shape
from runner.protocols import Data, Trainable, World
from runner.world.rehearsal import rehearsal
from runner.world.seeds import mix, seed_all, set_deterministic


def build(spec: RunSpec, run_dir: RunDir, world: World, stopping: Stopping) -> Session:
    """Everything that one rank needs, at step 0 and not yet restored. Collective.

    Raises:
        HookError, DataError: a hook returned what cannot be trained.
    """
    if spec.run.deterministic:
        set_deterministic()
    data = _call_data(spec, world)
    if spec.batch.auto:
        spec = _fitted(spec, run_dir, data, world)
    trainable = _prepare(spec, world)
    listeners = {name: callback.build() for name, callback in spec.callback.items()}
    seed_all(mix(spec.run.seed, 2, world.rank))  # from here on, ranks draw apart: dropout and the like
    return Session(
        spec=spec,
        run_dir=run_dir,
        world=world,
        stopping=stopping,
        data=data,
        source=open_source(spec, data, world),
        trainable=trainable,
        schedule=spec.schedule.build(trainable.optimizer, steps=spec.run.steps),
        checkpointer=spec.checkpoint.open(run_dir.path, world),
        trackers=(),
        listeners=listeners,
        step_listeners=[listeners[name] for name, callback in spec.callback.items() if callback.every_step],
        console=open_console(steps=spec.run.steps, start=0, is_main=False),
        guard=open_guard(spec.guard, spec.precision),
    )


def open_records(session: Session) -> None:
    """Open trackers and console on rank 0, once it is known at which step the attempt begins."""
    spec, is_main = session.spec, session.world.is_main
    if is_main:
        session.trackers = [
            tracker.open(session.run_dir.path, config=spec.config, step=session.step)
            for tracker in spec.tracker.values()
        ]
    session.console = open_console(steps=spec.run.steps, start=session.step, is_main=is_main)


def _prepare(spec: RunSpec, world: World) -> Trainable:
    return spec.strategy.prepare(
        build_model=lambda: _call_model(spec),
        build_optimizer=partial(spec.optimizer.build, items=spec.batch.items),
        loss=hooks.resolve(spec.loss, spec.import_roots),
        precision=spec.precision,
        clip=spec.clip,
        world=world,
    )


def _fitted(spec: RunSpec, run_dir: RunDir, data: Data, world: World) -> RunSpec:
    """The spec with micro_items that fit; what was found is in provenance.json."""
    alone = replace(spec, loader=replace(spec.loader, workers=0))
    imagined = rehearsal(world, spec.strategy.axes(world.size))
    found = fit_batch(
        spec,
        world,
        Rehearsal(
            prepare=lambda: _prepare(spec, imagined),
            batches=lambda batch: next(iter(open_source(replace(alone, batch=batch), data, world))),
        ),
    )
    if world.is_main:
        provenance.note(run_dir.provenance, "batch", {**vars(found.batch)})
    return found


def _call_model(spec: RunSpec) -> Module:
    """The model hook, seeded alike on every rank, so that initial weights are equal by construction; then what the spec
    does to any model.
    """
    seed_all(spec.run.seed)
    model = hooks.resolve(spec.model, spec.import_roots)()
    if not isinstance(model, Module):
        raise HookError(f"{spec.model.target} returned a {type(model).__name__}, but must return a torch.nn.Module.")
    if not any(True for _ in model.parameters()):
        raise HookError(f"{spec.model.target} returned a model without parameters: there is nothing to train.")
    spec.precision.convert(model, spec.hardware)
    shape(model, spec)
    return model


def _call_data(spec: RunSpec, world: World) -> Data:
    """The data hook: first on rank 0, so that what it prepares on disk is there for the others."""
    with world.main_first():
        seed_all(spec.run.seed)
        data = hooks.resolve(spec.data, spec.import_roots)()
    return check_data(data, spec.data.target, wants_eval=spec.eval.every_steps is not None)
