"""Builds a RunSpec from a composed configuration, or raises every fault in it at once."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from runner.config import hooks
from runner.config.groups import GROUPS, MANY_GROUPS
from runner.config.imports import import_from
from runner.config.masking import collected, hidden, marked, revealed, scrubber
from runner.config.model_rules import own_part_faults, several_faults
from runner.config.models import Hook
from runner.config.nearest import did_you_mean, listed
from runner.config.of_blocks import ActivationCheckpointing, Blocks, Compile
from runner.config.parts import MISSING, TARGET, build_part, build_section, imports_any, shown
from runner.config.read_files import read_files_of
from runner.config.read_models import SEVERAL, hook_faults, is_left_out, read_models, taken_by
from runner.config.rules import (
    BatchKeys,
    clip_faults,
    compile_faults,
    divide,
    eval_faults,
    group_faults,
    loader_faults,
    range_faults,
    run_faults,
    secret_faults,
)
from runner.config.run_spec import Batch, Eval, Guard, Loader, Log, Run, RunSpec, Sweep
from runner.config.secret import NO_SECRETS, Secret
from runner.config.unknown import UNKNOWN, NotKnown, as_far_as_known
from runner.errors import Fault, SpecError
from runner.protocols import Clip

__all__ = ["GROUPS", "MANY_GROUPS", "Origin", "Rule", "as_far_as_known", "read"]

Origin = Callable[[str], str]
"""From a dotted key to where its value came from; empty if that is unknown."""
Rule = Callable[[RunSpec], Iterable[Fault]]
"""A rule of a room above this one. Asking the spec for something that could not be built ends it."""

SECTIONS: Mapping[str, type[Any]] = {
    "batch": BatchKeys,
    "run": Run,
    "loader": Loader,
    "clip": Clip,
    "eval": Eval,
    "log": Log,
    "guard": Guard,
    "blocks": Blocks,
    "activation_checkpointing": ActivationCheckpointing,
    "compile": Compile,
    "sweep": Sweep,
}
HOOKS = tuple(hooks.POSITIONAL)
KNOWN = ("name", "version", *HOOKS, *SEVERAL, *SECTIONS, *GROUPS, *MANY_GROUPS)
UNCHECKED = "The hooks, and the rules between parts, are checked once this is right."
"""The note of an error about names, types and ranges."""


@dataclass(kw_only=True)
class _Reading:
    """What has been built from a configuration so far, and its faults."""

    config: Mapping[str, Any]
    import_roots: tuple[str, ...]
    imports: Callable[[str], bool]
    built: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def take(self, key: str, value: Any, faults: Sequence[Fault] = ()) -> None:
        """Record what was built for a key; None = it could not be built."""
        self.built[key] = UNKNOWN if value is None else value
        self.faults += faults


def no_origin(_key: str) -> str:
    """The origin of a value that is not known."""
    return ""


def read(
    config: Mapping[str, Any],
    *,
    import_roots: Sequence[str],
    origin: Origin = no_origin,
    known_faults: Sequence[Fault] = (),
    check: bool = True,
    rules: Sequence[Rule] = (),
    imports: Callable[[str], bool] = imports_any,
    secrets: Mapping[str, Secret] = NO_SECRETS,
    keep: bool = False,
) -> RunSpec:
    """Build a RunSpec from plain dicts, lists and scalars.

    Faults come in two rounds. Names, types and ranges of the whole declaration are checked first, and told without
    importing hooks or torch, which takes seconds. Only where they are right, hooks are imported and rules applied.

    Args:
        config: composed and resolved, without Hydra's own node.
        import_roots: put first on sys.path, for good.
        known_faults: found while the configuration was composed; raised together with those found here.
        check: False trusts an earlier check: hooks are not imported, files not read and no rules applied.
        rules: further rules, applied after those of sections and parts.
        imports: whether a target may be imported. A part that may not is not built: to ask for it raises an
            AttributeError, and what depends on it is not checked.
        secrets: values that the configuration holds only a record of, by dotted key; others come from the environment.
        keep: leave a secret that cannot be had as it is recorded, without a fault.

    Raises:
        SpecError: with every fault of one round.
    """
    import_from(import_roots)
    config, missing = revealed(config, secrets, keep=keep)
    config = marked(config, origin=lambda _key: "the recipe")
    faults = [*known_faults, *missing]
    reading = _Reading(config=config, import_roots=tuple(import_roots), imports=imports, faults=faults)
    _read_without_hooks(reading, check=check)
    scrub = scrubber(collected(reading.config).values())
    if reading.faults:
        raise _error(reading.faults, origin, scrub, note=UNCHECKED)
    spec = _read_hooks(reading, check=check)
    if check:
        reading.faults += _checked(spec, rules)
    if reading.faults:
        raise _error(reading.faults, origin, scrub)
    return spec


def _read_without_hooks(reading: _Reading, *, check: bool) -> None:
    """The first round: all but the hooks, and the rules between parts."""
    _read_names(reading)
    for key, cls in SECTIONS.items():
        _read_section(reading, key, cls)
    for key, adapter in GROUPS.items():
        built = build_part(reading.config.get(key), key=key, adapter=adapter, imports=reading.imports)
        misplaced = list(group_faults(key, built.value))
        reading.take(key, None if misplaced else built.value, [*built.faults, *misplaced])
    for key in MANY_GROUPS:
        _read_many(reading, key)
    if check:
        _read_files(reading)
    several = read_models(reading.config, reading.built, reading.imports, files=check)
    reading.config = {**reading.config, **several.config}
    reading.built |= several.built
    reading.faults += several.faults
    if check:
        reading.config = marked(reading.config, origin=lambda _key: "a file that the recipe names")
        reading.faults += as_far_as_known(lambda: run_faults(reading.built["run"]))
        reading.faults += as_far_as_known(lambda: eval_faults(reading.built["eval"], reading.built["metric"]))
        reading.faults += as_far_as_known(lambda: clip_faults(reading.built["clip"]))
    _read_batch(reading)


def _read_hooks(reading: _Reading, *, check: bool) -> RunSpec:
    """What the second round begins with: the hooks, and with them the whole."""
    for key in HOOKS:
        _read_hook(reading, key, check=check)
    if check:
        roots, imports = reading.import_roots, reading.imports
        reading.faults += as_far_as_known(
            lambda: hook_faults(reading.config, reading.built, import_roots=roots, imports=imports)
        )
    return RunSpec(
        **{key: reading.built[key] for key in KNOWN},
        import_roots=reading.import_roots,
        config=hidden(reading.config),
        secrets=collected(reading.config),
    )


def _read_names(reading: _Reading) -> None:
    name = reading.config.get("name")
    good = isinstance(name, str | int) and str(name) not in ("", MISSING, ".", "..") and "/" not in str(name)
    rule = "must be given: text without a slash, part of the name of the run's directory."
    reading.take(
        "name",
        str(name) if good else None,
        [] if good else [Fault(key="name", message=f"{shown(name)}: {rule}")],
    )
    _read_version(reading)
    for key in map(str, reading.config):
        if key not in KNOWN:
            rule = f"there is no such section.{did_you_mean(key, KNOWN)} There are: {listed(KNOWN)}."
            reading.faults.append(Fault(key=key, message=rule))


def _read_version(reading: _Reading) -> None:
    version = reading.config.get("version")
    good = version is None or (isinstance(version, str | int) and not isinstance(version, bool))
    rule = f"{shown(version)} must be text: quote it, since YAML reads 1.10 as the number 1.1. version: '1.10'"
    reading.built["version"] = None if version is None else str(version)
    reading.faults += [] if good else [Fault(key="version", message=rule)]


def _read_section(reading: _Reading, key: str, cls: type[Any]) -> None:
    node = reading.config.get(key, {})
    if not isinstance(node, Mapping):
        reading.take(key, None, [Fault(key=key, message=f"{shown(node)} must be a mapping: {key}.<key>=<value>")])
        return
    built = build_section(cls, node, key=key)
    ranges = list(range_faults(key, vars(built.value) if built.value is not None else node))
    reading.take(key, None if ranges else built.value, [*built.faults, *ranges])


def _read_many(reading: _Reading, group: str) -> None:
    node = reading.config.get(group) or {}
    if not isinstance(node, Mapping):
        fault = Fault(key=group, message=f"{shown(node)} must be a mapping of names to options.")
        reading.take(group, None, [fault])
        return
    parts = {}
    for name, option in node.items():
        built = build_part(option, key=f"{group}.{name}", adapter=MANY_GROUPS[group], imports=reading.imports)
        reading.faults += built.faults
        parts[name] = UNKNOWN if built.value is None else built.value
    reading.take(group, parts)


def _read_files(reading: _Reading) -> None:
    """Put the content of files that parts name into the parts, and into the configuration that will be frozen."""
    reading.config = config = dict(reading.config)
    reading.faults += read_files_of(GROUPS, reading.built, config)
    for group in MANY_GROUPS:
        parts = reading.built[group]
        if parts is not UNKNOWN and parts:
            config[group] = dict(config[group])
            reading.faults += read_files_of(parts, parts, config[group], above=f"{group}.")


def _read_hook(reading: _Reading, key: str, *, check: bool) -> None:
    node, models = reading.config.get(key, {}), tuple(reading.built["models"])
    if is_left_out(key, node, several=bool(models), in_phases=bool(reading.built["phases"])):
        reading.built[key] = None
        return
    roots, taken = reading.import_roots, taken_by(key, models)
    found = hooks.faults_of(node, key=key, import_roots=roots, imports=reading.imports, **taken)
    faults = list(found) if check else []
    whole = isinstance(node, Mapping) and TARGET in node
    hook = hooks.hook_of(node) if whole else Hook(target=MISSING)
    reading.take(key, None if faults else hook, faults)


def _read_batch(reading: _Reading) -> None:
    """Replace the keys of the batch by the batch as it is divided among the strategy's data ranks."""
    if any(fault.key.startswith("batch.") for fault in reading.faults):
        reading.take("batch", None)
        return
    try:
        keys, world_size = reading.built["batch"], reading.built["launch"].nodes * reading.built["hardware"].processes
        names = (field.name for field in fields(BatchKeys))
        given = BatchKeys(**{name: getattr(keys, name) for name in names})  # of a section that is unknown, this ends it
        axes = reading.built["strategy"].axes(world_size)
    except NotKnown:
        reading.take("batch", None)
        return
    except ValueError as refused:
        reading.take("batch", None, [Fault(key="hardware.processes", message=str(refused))])
        return
    batch = divide(given, data_ranks=axes.data_ranks)
    reading.take(
        "batch",
        batch if isinstance(batch, Batch) else None,
        [batch] if isinstance(batch, Fault) else [],
    )


def _checked(spec: RunSpec, rules: Sequence[Rule]) -> Iterator[Fault]:
    """Every part's own rules, then further ones."""
    yield from as_far_as_known(lambda: loader_faults(spec.loader, spec.batch))
    yield from as_far_as_known(lambda: compile_faults(spec))
    if spec.launch is not UNKNOWN:
        yield from secret_faults(spec.launch, spec.secrets)
    parts = [vars(spec)[group] for group in GROUPS]
    parts += [part for group in MANY_GROUPS for part in vars(spec)[group].values()]
    for part in parts:
        yield from as_far_as_known(lambda part=part: part.check(spec))  # type: ignore[misc]
    yield from own_part_faults(spec)
    yield from as_far_as_known(lambda: several_faults(spec))
    for rule in rules:
        yield from as_far_as_known(lambda rule=rule: rule(spec))  # type: ignore[misc]


def _error(faults: Sequence[Fault], origin: Origin, scrub: Callable[[str], str], *, note: str = "") -> SpecError:
    """All faults, without duplicates, since two parts may find the same one, and without secrets."""
    scrubbed = (replace(fault, message=scrub(fault.message)) for fault in dict.fromkeys(faults))
    return SpecError(*(_with_origin(fault, origin) for fault in scrubbed), note=note)


def _with_origin(fault: Fault, origin: Origin) -> Fault:
    return fault if fault.origin else replace(fault, origin=origin(fault.key))
