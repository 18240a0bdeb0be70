"""From a spec to a session: call the hooks, let the strategy place what they return, open what records."""

from dataclasses import replace
from functools import partial
from typing import Any

from torch.nn import Module

from runner.config import hooks, provenance
from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.data.loader import num_items
from runner.data.order import Order
from runner.data.stream import Stream
from runner.engine.console import open_console
from runner.engine.fit_batch import Rehearsal, fit_batch
from runner.engine.listeners import build_listeners
from runner.engine.non_finite.guard import open_guard
from runner.engine.session import Session, Stopping
from runner.engine.trackers import NoTrackers, open_trackers
from runner.errors import DataError, HookError
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
    listeners = build_listeners(spec.callback)
    seed_all(mix(spec.run.seed, 2, world.rank))  # from here on, ranks draw apart: dropout and the like
    return Session(
        spec=spec,
        run_dir=run_dir,
        world=world,
        stopping=stopping,
        data=data,
        stream=_stream(spec, data, world),
        trainable=trainable,
        schedule=spec.schedule.build(trainable.optimizer, steps=spec.run.steps),
        checkpointer=spec.checkpoint.open(run_dir.path, world),
        trackers=NoTrackers(),
        listeners=listeners,
        console=open_console(steps=spec.run.steps, start=0, is_main=False),
        guard=open_guard(spec.guard, spec.precision),
    )


def open_records(session: Session) -> None:
    """Open trackers and console on rank 0, once it is known at which step the attempt begins."""
    spec, is_main = session.spec, session.world.is_main
    if is_main:
        session.trackers = open_trackers(
            spec, session.run_dir, step=session.step, now=lambda: (session.step, session.time_s)
        )
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
            batches=lambda batch: next(iter(_stream(replace(alone, batch=batch), data, world))),
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
    return _as_data(data, spec.data.target, wants_eval=spec.eval.every_steps is not None)


def _as_data(data: Any, target: str, *, wants_eval: bool) -> Data:
    if not isinstance(data, Data):
        raise HookError(f"{target} returned a {type(data).__name__}, but must return runner.Data(train=…, eval=…).")
    num_items(data.train, "train")
    if data.eval is not None:
        num_items(data.eval, "eval")
    elif wants_eval:
        raise DataError(
            f"eval.every_steps is set, but {target} returned no eval dataset. Return one, or set it to null."
        )
    return data


def _stream(spec: RunSpec, data: Data, world: World) -> Stream:
    data_ranks = spec.strategy.axes(world.size).data_ranks
    order = Order(
        num_items(data.train, "train"),
        step_items=spec.batch.items,
        micro_items=spec.batch.micro_items,
        rank=world.rank % data_ranks,
        ranks=data_ranks,
        seed=spec.run.seed,
        shuffle=spec.loader.shuffle,
    )
    return Stream(
        data.train,
        order,
        collate=data.collate,
        device=world.device,
        workers=spec.loader.workers,
        prefetch=spec.loader.prefetch,
        pinned=spec.hardware.pins_memory,
    )
