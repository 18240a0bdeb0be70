"""Builds the models of a run: what a strategy needs for one model, and all that several models are trained by."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
import xxhash
from torch.nn import Module, Parameter

from runner.config import hooks
from runner.config.models import Hook, teams
from runner.config.of_blocks import Compiled
from runner.config.run_spec import RunSpec
from runner.errors import HookError, ModelError
from runner.model.blocks import block_faults
from runner.model.named import Cast, Models, in_context
from runner.model.shape import apply_compile, apply_recompute
from runner.protocols import Builder, Placed, Precision, Trainable, World
from runner.protocols.state import MODEL
from runner.teams.joint_optimizer import JointOptimizer
from runner.teams.placed import SeveralPlaced, Team
from runner.teams.trainable import Phase, SeveralTrainable, Turns
from runner.world.hook_ranks import HookRanks
from runner.world.other_mesh import with_axes
from runner.world.seeds import mix, seed_all

See = Callable[[Module, str], None]
"""Given a model as its hook returned it, and its name."""
Call = Callable[[Any, Any, int], Any]
"""A hook, given the model (or several by name), a batch, and how many of its items count."""


def look_at_nothing(model: Module, name: str) -> None:
    """Look at a model, and do nothing."""


def prepare(spec: RunSpec, ranks: HookRanks, world: World, *, see: See) -> tuple[Trainable, Turns | None]:
    """Build, place and prepare the model or models of a run. Collective.

    Returns:
        What the run trains and, if it has phases, the updates of a step.

    Raises:
        HookError, ModelError: a model hook returned something that cannot be trained.
    """
    if not spec.models:
        return spec.strategy.prepare(builder_of(spec, ranks, see=see), world), None
    calls = {name: hook_call("loss", phase.loss, spec, ranks) for name, phase in spec.phases.items()}
    evaluated = hook_call("loss", spec.loss, spec, ranks) if spec.loss else None
    several = _Several(spec, ranks, world, see=see, cast=Cast(evaluated))
    frozen = several.place_each(name for name, one in spec.models.items() if one.frozen)
    updated = teams(spec.models, spec.phases)
    trainable = SeveralTrainable(several.prepare_each(updated), frozen, several.cast, evaluated)
    if not calls:
        return trainable, None
    phases = [
        Phase(name, calls[name], next(at for at, team in enumerate(updated) if {*team} == {*one.updates}), one.rounds)
        for name, one in spec.phases.items()
    ]
    return trainable, partial(trainable.turns, phases)


def place(spec: RunSpec, ranks: HookRanks, world: World, *, call: Call | None = None) -> Placed:
    """Build and place the model or models of a run, without optimizers. Collective.

    Args:
        call: what evaluations call in place of the loss hook.
    """
    if not spec.models:
        builder = builder_of(spec, ranks)
        return spec.strategy.place(builder if call is None else replace(builder, loss=call), world)
    if call is None and spec.loss is not None:
        call = hook_call("loss", spec.loss, spec, ranks)
    several = _Several(spec, ranks, world, see=look_at_nothing, cast=Cast(call))
    return SeveralPlaced(several.place_each(spec.models), several.cast, evaluated=call)


def builder_of(spec: RunSpec, ranks: HookRanks, *, see: See = look_at_nothing) -> Builder:
    """The functions and options from which a strategy builds a run's only model and its optimizer.

    Args:
        ranks: given to hooks that ask for them.
        see: called with the model as the hook returned it.
    """
    assert spec.loss is not None
    return Builder(
        build_model=partial(_call_model, spec, ranks, lambda model: see(model, MODEL)),
        recompute=partial(apply_recompute, spec=spec),
        compile=partial(apply_compile, spec=spec),
        build_optimizer=partial(spec.optimizer.build, items=spec.batch.items),
        loss=hook_call("loss", spec.loss, spec, ranks),
        precision=spec.precision,
        clip=spec.clip,
    )


def hook_call(key: str, hook: Hook, spec: RunSpec, ranks: HookRanks) -> Call:
    """A hook that is called with the model, or with those of several that it asks for by name.

    Args:
        key: of the hook in a recipe: loss or predict.
    """
    call = hooks.resolve(hook, spec.import_roots)
    counting, filler = ranks.all, ranks.filler
    if spec.models:
        asked = [name for name in spec.models if hooks.asks_by_name(hook, name, spec.import_roots)]
        wants_batch, wants_world = (
            hooks.asks_by_name(hook, name, spec.import_roots) for name in (hooks.BATCH, hooks.WORLD)
        )

        def by_name(models: Mapping[str, Module], batch: Any, items: int) -> Any:
            given: dict[str, Any] = {name: models[name] for name in asked}
            if wants_batch:
                given[hooks.BATCH] = batch
            if wants_world:
                given[hooks.WORLD] = counting if items else filler
            return call(**given)

        return by_name
    if not hooks.asks(key, hook, spec.import_roots):
        return lambda model, batch, items: call(model, batch)
    return lambda model, batch, items: call(model, batch, world=counting if items else filler)


@final
class _Several:
    """Builds the models of a run that has several."""

    def __init__(self, spec: RunSpec, ranks: HookRanks, world: World, *, see: See, cast: Cast) -> None:
        self.cast = cast
        self._spec = spec
        self._ranks = ranks
        self._world = world
        self._see = see
        first, *others = (one.precision for one in spec.models.values())
        self._precisions_differ = any(other != first for other in others)

    def place_each(self, names: Iterable[str]) -> list[Team]:
        """Place models without optimizers, each by its own strategy. Collective."""
        return [self._joined(Team((name,), self._strategy(name).place(*self._given((name,))))) for name in names]

    def prepare_each(self, updated: Iterable[tuple[str, ...]]) -> list[Team]:
        """Prepare models to be trained, those that are updated together as one. Collective."""
        return [self._joined(Team(names, self._strategy(names[0]).prepare(*self._given(names)))) for names in updated]

    def _strategy(self, name: str) -> Any:
        return self._spec.models[name].strategy

    def _given(self, names: tuple[str, ...]) -> tuple[Builder, World]:
        """What a strategy gets: how these models are built, and the ranks, along its own axes."""
        views = {name: self._view(name) for name in names}
        axes = self._strategy(names[0]).axes(self._world.size)
        builder = Builder(
            build_model=partial(self._build, views),
            recompute=self._recompute,
            compile=self._compile,
            build_optimizer=partial(self._build_optimizer, views),
            loss=self.cast.loss,
            precision=views[names[0]].precision,
            clip=self._spec.clip,
        )
        return builder, with_axes(self._world, axes)

    def _joined(self, team: Team) -> Team:
        self.cast.join(team.placed.models)
        for name in team.names:
            if self._spec.models[name].frozen:
                self.cast.models[name].eval()
        return team

    def _view(self, name: str) -> RunSpec:
        """The run as if this model were its only one, with a seed of its own: alike models begin with other weights."""
        view = self._spec.of_model(name)
        return replace(view, run=replace(view.run, seed=mix(view.run.seed, xxhash.xxh3_64_intdigest(name.encode()))))

    def _build(self, views: Mapping[str, RunSpec]) -> Models:
        models = {}
        for name, view in views.items():
            models[name] = model = _call_model(view, self._ranks, partial(self._freeze_and_see, name))
            if self._precisions_differ:  # a hook runs in the autocast of one model, and calls others as well
                in_context(model, _autocast(view.precision, self._world.device.type))
        return Models(models)

    def _freeze_and_see(self, name: str, model: Module) -> None:
        if self._spec.models[name].frozen:
            model.requires_grad_(False)
        self._see(model, name)

    def _recompute(self, models: Module) -> None:
        if self._has_blocks(models):
            apply_recompute(models, self._spec)

    def _compile(self, models: Module) -> None:
        assert isinstance(models, Models)
        if self._spec.compile.what is Compiled.MODEL:
            for model in models.by_name.values():
                apply_compile(model, self._spec)
        elif self._has_blocks(models):
            apply_compile(models, self._spec)

    def _has_blocks(self, models: Module) -> bool:
        """Whether the run's blocks are among these modules: they need be in one of the models only."""
        return not list(block_faults(models, self._spec.blocks.classes, key="blocks.classes"))

    def _build_optimizer(
        self, views: Mapping[str, RunSpec], named: Iterable[tuple[str, Parameter]]
    ) -> torch.optim.Optimizer:
        own: dict[str, list[tuple[str, Parameter]]] = {name: [] for name in views}
        for whole, parameter in named:
            model, _, name = whole.partition(".")
            own[model].append((name, parameter))
        parts = {name: view.optimizer.build(own[name], items=view.batch.items) for name, view in views.items()}
        return JointOptimizer(parts) if len(parts) > 1 else next(iter(parts.values()))


def _autocast(precision: Precision, device_type: str) -> Any:
    """The precision's own autocast, or none even inside that of another one."""
    context = precision.autocast(device_type)
    return torch.autocast(device_type, enabled=False) if isinstance(context, nullcontext) else context


def _call_model(spec: RunSpec, ranks: HookRanks, see: Callable[[Module], None]) -> Module:
    """Call the model hook with the same seed on every rank, so that initial weights are equal by construction."""
    hook = spec.model
    assert hook is not None
    offered = {hooks.WORLD: ranks.all} if hooks.asks("model", hook, spec.import_roots) else {}
    seed_all(spec.run.seed)
    model = hooks.resolve(hook, spec.import_roots)(**offered)
    if not isinstance(model, Module):
        raise HookError(f"{hook.target} returned a {type(model).__name__}, but must return a torch.nn.Module.")
    if not any(True for _ in model.parameters()):
        raise ModelError(f"{hook.target} returned a model without parameters: there is nothing to train.")
    see(model)
    spec.precision.convert(model, spec.hardware)
    return model
