"""Builds the models of a run that has several."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, final

import torch
import xxhash
from torch.nn import Module, Parameter

from runner.config.models import teams
from runner.config.of_blocks import Compiled, Recompute
from runner.config.run_spec import RunSpec
from runner.engine.models import See, call_model, hook_call, look_at_nothing
from runner.errors import Fault, SpecError
from runner.model.blocks import block_faults
from runner.model.named import Call, Cast, Models, in_context
from runner.model.shape import apply_compile, apply_recompute
from runner.protocols import Builder, Placed, Precision, Trainable, World
from runner.teams.joint_optimizer import JointOptimizer
from runner.teams.phases import Phase, Turns
from runner.teams.placed import SeveralPlaced, Team
from runner.teams.trainable import SeveralTrainable
from runner.world.hook_ranks import HookRanks
from runner.world.other_mesh import with_axes
from runner.world.seeds import mix

P = TypeVar("P", bound=Placed)


def prepare_several(spec: RunSpec, ranks: HookRanks, world: World, *, see: See) -> tuple[Trainable, Turns | None]:
    """Build, place and prepare all models. Collective.

    Returns:
        What the run trains and, if it has phases, the updates of a step.

    Raises:
        HookError, ModelError: a model hook returned something that cannot be trained.
    """
    calls = {name: hook_call("loss", phase.loss, spec, ranks) for name, phase in spec.phases.items()}
    evaluated = hook_call("loss", spec.loss, spec, ranks) if spec.loss else None
    several = _Several(spec, ranks, world, see=see, cast=Cast(evaluated))
    frozen = several.place_each(name for name, one in spec.models.items() if one.frozen)
    updated = teams(spec.models, spec.phases)
    trainable = SeveralTrainable(several.prepare_each(updated), frozen, several.cast, evaluated)
    several.check_blocks()
    if not calls:
        return trainable, None
    phases = [
        Phase(name, calls[name], next(at for at, team in enumerate(updated) if {*team} == {*one.updates}), one.rounds)
        for name, one in spec.phases.items()
    ]
    return trainable, partial(trainable.turns, phases)


def place_several(spec: RunSpec, ranks: HookRanks, world: World, *, call: Call | None = None) -> Placed:
    """Build and place all models, without optimizers. Collective.

    Args:
        call: what evaluations call in place of the loss hook.
    """
    if call is None and spec.loss is not None:
        call = hook_call("loss", spec.loss, spec, ranks)
    several = _Several(spec, ranks, world, see=look_at_nothing, cast=Cast(call))
    return SeveralPlaced(several.place_each(spec.models), several.cast, evaluated=call)


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
        self._have_blocks = False
        self._without_blocks: list[list[Fault]] = []  # by team
        self._precisions_differ = any(other != first for other in others)

    def place_each(self, names: Iterable[str]) -> list[Team[Placed]]:
        """Place models without optimizers, each by its own strategy. Collective."""
        return [self._joined(Team((name,), self._strategy(name).place(*self._given((name,))))) for name in names]

    def prepare_each(self, updated: Iterable[tuple[str, ...]]) -> list[Team[Trainable]]:
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

    def _joined(self, team: Team[P]) -> Team[P]:
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
            models[name] = model = call_model(view, self._ranks, partial(self._freeze_and_see, name))
            if self._precisions_differ:  # a hook runs in the autocast of one model, and calls others as well
                in_context(model, _autocast(view.precision, self._world.device.type))
        return Models(models)

    def _freeze_and_see(self, name: str, model: Module) -> None:
        if self._spec.models[name].frozen:
            model.requires_grad_(False)
        self._see(model, name)

    def _recompute(self, models: Module) -> None:
        if self._spec.activation_checkpointing.what is not Recompute.NONE and self._has_blocks(models):
            apply_recompute(models, self._spec)

    def _compile(self, models: Module) -> None:
        assert isinstance(models, Models)
        if self._spec.compile.what is Compiled.MODEL:
            for model in models.by_name.values():
                apply_compile(model, self._spec)
        elif self._spec.compile.what is Compiled.BLOCKS and self._has_blocks(models):
            apply_compile(models, self._spec)

    def check_blocks(self) -> None:
        """See that one of the models has the run's blocks, if it needs some.

        Raises:
            SpecError: none has.
        """
        if self._without_blocks and not self._have_blocks:
            raise SpecError(*self._without_blocks[-1])

    def _has_blocks(self, models: Module) -> bool:
        """Whether the run's blocks are among these modules: they need be in one of the models only."""
        faults = list(block_faults(models, self._spec.blocks.classes, key="blocks.classes"))
        self._without_blocks += [faults] if faults else []
        self._have_blocks = self._have_blocks or not faults
        return not faults

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
