"""Reads the sections of a run with several models: `models`, and the `phases` that train them in turns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple, TypedDict

from runner.config import hooks
from runner.config.groups import GROUPS
from runner.config.models import OWN, Hook, NamedModel, TrainingPhase, teams
from runner.config.nearest import did_you_mean, listed
from runner.config.parts import MISSING, TARGET, build_part, build_sections, shown
from runner.config.read_files import read_files_of
from runner.config.unknown import UNKNOWN
from runner.errors import Fault

__all__ = [
    "SEVERAL",
    "ModelKeys",
    "PhaseKeys",
    "Several",
    "hook_faults",
    "is_left_out",
    "read_models",
    "taken_by",
]

MODELS = "models"
PHASES = "phases"
RESERVED = hooks.offered_by_name(())
"""What the other parameters of a hook that gets several models are called."""
BY_NAME = ("loss", "predict")
"""Hooks that get several models: each by its name, and the batch as `batch`."""


@dataclass(frozen=True, kw_only=True)
class ModelKeys:
    """One of several models: its hook, and what it does not share with the others."""

    model: Mapping[str, Any] = field(default_factory=dict)
    """Its model hook: _target_ and arguments."""
    frozen: bool = False
    """Keep its weights as they are: in evaluation mode, without an optimizer."""
    strategy: Mapping[str, Any] = field(default_factory=dict)
    """Keys that differ from the run's strategy; with _target_, a strategy of its own."""
    precision: Mapping[str, Any] = field(default_factory=dict)
    """Keys that differ from the run's precision; with _target_, a precision of its own."""
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    """Keys that differ from the run's optimizer; with _target_, an optimizer of its own."""
    schedule: Mapping[str, Any] = field(default_factory=dict)
    """Keys that differ from the run's schedule; with _target_, a schedule of its own."""


@dataclass(frozen=True, kw_only=True)
class PhaseKeys:
    """One of the phases in which a step trains several models in turns."""

    loss: Mapping[str, Any] = field(default_factory=dict)
    """Its loss hook, which gets models by their names: _target_ and arguments."""
    updates: list[str] = field(default_factory=list)
    """The models that it updates."""
    rounds: int = 1
    """Updates in one step, each with batch.items of its own."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds} must be at least 1.")


SEVERAL: Mapping[str, type[Any]] = {MODELS: ModelKeys, PHASES: PhaseKeys}
"""The sections whose keys are names, with what each name has."""


class Taken(TypedDict):
    """What the engine gives to a hook."""

    positional: int
    offered: Sequence[str]


class Several(NamedTuple):
    """The models and phases of a run; none in a run with one model."""

    built: Mapping[str, Mapping[str, Any]]
    """`models` to NamedModel, and `phases` to TrainingPhase, each by name."""
    config: Mapping[str, Any]
    """The section `models` with the content of the files that it names; empty in a run with one model."""
    faults: Sequence[Fault]


def read_models(
    config: Mapping[str, Any], shared: Mapping[str, Any], imports: Callable[[str], bool], *, files: bool
) -> Several:
    """Build models and phases, without importing their hooks.

    Args:
        shared: the run's parts by group.
        files: also read the files that the models' own parts name.
    """
    built = build_sections(ModelKeys, config.get(MODELS) or {}, key=MODELS)
    phased = build_sections(PhaseKeys, config.get(PHASES) or {}, key=PHASES)
    keys: Mapping[str, ModelKeys] = built.value or {}
    phase_keys: Mapping[str, PhaseKeys] = phased.value or {}
    faults = [*built.faults, *phased.faults]
    models, nodes = {}, {}
    for name, one in keys.items():
        parts, nodes[name] = {}, dict(config[MODELS][name])
        for group in OWN:
            parts[group], wrong = _part(name, group, vars(one)[group], config, shared, imports)
            faults += wrong
        own = [group for group in OWN if vars(one)[group]] if files else ()
        faults += read_files_of(own, parts, nodes[name], above=f"{MODELS}.{name}.")
        models[name] = NamedModel(model=_hook(one.model), frozen=one.frozen, **parts)
    phases = {
        name: TrainingPhase(loss=_hook(one.loss), updates=tuple(one.updates), rounds=one.rounds)
        for name, one in phase_keys.items()
    }
    if not faults:
        faults += [*_name_faults(keys, config), *_phase_faults(keys, phase_keys)]
    return Several({MODELS: models, PHASES: phases}, {MODELS: nodes} if nodes else {}, faults)


def hook_faults(
    config: Mapping[str, Any], built: Mapping[str, Any], *, import_roots: Sequence[str], imports: Callable[[str], bool]
) -> Iterator[Fault]:
    """The faults of all hooks of models and phases. Imports those that may be; calls nothing.

    Args:
        built: the models and phases, and the run's only loss.
    """
    models, phases = built[MODELS], built[PHASES]
    looking: dict[str, Any] = {"import_roots": import_roots, "imports": imports}
    for name in models:
        node, key = config[MODELS][name].get("model"), f"{MODELS}.{name}.model"
        yield from hooks.faults_of(node, key=key, positional=hooks.POSITIONAL["model"], **looking)
    for name, phase in phases.items():
        node, key = config[PHASES][name].get("loss"), f"{PHASES}.{name}.loss"
        found = [*hooks.faults_of(node, key=key, **taken_by("loss", [*models]), **looking)]
        yield from found or _takes_none(phase.loss, phase.updates, key=key, **looking)
    if models and not phases:
        yield from _takes_none(built["loss"], teams(models, phases)[0], key="loss", **looking)


def _takes_none(
    hook: Hook, updated: Sequence[str], *, key: str, import_roots: Sequence[str], imports: Callable[[str], bool]
) -> Iterator[Fault]:
    if imports(hook.target) and not any(hooks.asks(hook, import_roots, name) for name in updated):
        rule = f"{hook.target} takes none of the models that it updates. Give it a parameter called"
        yield Fault(key=f"{key}.{TARGET}", message=f"{rule} {' or '.join(updated)}.")


def is_left_out(key: str, node: Any, *, several: bool, in_phases: bool) -> bool:
    """Whether a recipe need not have a hook, and has none."""
    if isinstance(node, Mapping) and node.get(TARGET, MISSING) not in (MISSING, None):
        return False
    if key in hooks.OPTIONAL:
        return not node or (isinstance(node, Mapping) and node.get(TARGET) is None)
    return (key == "model" and several) or (key == "loss" and in_phases)


def taken_by(key: str, models: Sequence[str]) -> Taken:
    """What the engine gives to one of the run's own hooks."""
    if models and key in BY_NAME:
        return {"positional": 0, "offered": hooks.offered_by_name(models)}
    return {"positional": hooks.POSITIONAL[key], "offered": hooks.OFFERED}


def _hook(node: Mapping[str, Any]) -> Hook:
    return hooks.hook_of(node if TARGET in node else {TARGET: MISSING})


def _part(
    model: str,
    group: str,
    node: Mapping[str, Any],
    config: Mapping[str, Any],
    shared: Mapping[str, Any],
    imports: Callable[[str], bool],
) -> tuple[Any, Sequence[Fault]]:
    """The run's part, one like it with other keys, or one of the model's own."""
    if not node:
        return shared[group], ()
    key = f"{MODELS}.{model}.{group}"
    whole = node if TARGET in node else _merged(config.get(group) or {}, node)
    built = build_part(whole, key=key, adapter=GROUPS[group], imports=imports)
    return UNKNOWN if built.value is None else built.value, built.faults


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _name_faults(models: Mapping[str, ModelKeys], config: Mapping[str, Any]) -> Iterator[Fault]:
    if not models:
        if config.get(PHASES):
            yield Fault(key=PHASES, message="train several models in turns, but the recipe has one. Name them: models")
        return
    single = config.get("model")
    target = single.get(TARGET, MISSING) if isinstance(single, Mapping) else MISSING
    if target not in (MISSING, None):
        rule = f"{shown(target)} is one model, and `models` names others. Keep one of the two: ~model._target_"
        yield Fault(key=f"model.{TARGET}", message=rule)
    for name, one in models.items():
        if not name.isidentifier() or name in RESERVED:
            rule = f"{name!r} must be a name that a parameter of a loss hook can have, other than {listed(RESERVED)}."
            yield Fault(key=f"{MODELS}.{name}", message=rule)
        for group in ("optimizer", "schedule") if one.frozen else ():
            if vars(one)[group]:
                rule = "is of no use to a model with frozen=true. Delete it, or use frozen=false."
                yield Fault(key=f"{MODELS}.{name}.{group}", message=rule)
    if all(one.frozen for one in models.values()):
        yield Fault(key=MODELS, message="has only models with frozen=true: there is nothing to train.")


def _phase_faults(models: Mapping[str, ModelKeys], phases: Mapping[str, PhaseKeys]) -> Iterator[Fault]:
    trained = [name for name, one in models.items() if not one.frozen]
    if not phases or not models:
        return
    for name, phase in phases.items():
        key = f"{PHASES}.{name}.updates"
        if not phase.updates:
            yield Fault(key=key, message=f"must name the models that the phase updates. There are: {listed(trained)}.")
        for updated in phase.updates:
            if updated not in trained:
                what = "is frozen" if updated in models else f"is no model.{did_you_mean(updated, models)}"
                yield Fault(key=key, message=f"{updated!r} {what}. A phase can update: {listed(trained)}.")
    for (name, phase), (other, later) in combinations(phases.items(), 2):
        both = {*phase.updates} & {*later.updates}
        if both and {*phase.updates} != {*later.updates}:
            rule = f"shares {listed(sorted(both))} with phases.{name}, which updates {listed(phase.updates)}."
            way_out = "Two phases update the same models, or different ones."
            yield Fault(key=f"{PHASES}.{other}.updates", message=f"{rule} {way_out}")
    by_any = {model for phase in phases.values() for model in phase.updates}
    for name in trained:
        if name not in by_any:
            rule = "is updated by no phase. Add it to the `updates` of one, or use frozen=true."
            yield Fault(key=f"{MODELS}.{name}", message=rule)
