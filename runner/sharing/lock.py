"""Writes a lock file, and compares one with the files, packages and platform that it meets."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runner import durable
from runner.composition.compose import compose
from runner.composition.composed import Composed
from runner.composition.find_recipe import find
from runner.composition.lock_file import FORMAT, LOCK, Lock
from runner.composition.origins import COMMAND_LINE, key_of
from runner.composition.overrides import escape_interpolations
from runner.composition.recipe import LOCK_SUFFIX, Recipe, is_lock, shipped_root
from runner.composition.yaml_file import FileFault, parse
from runner.config.masking import hidden, is_record_at, marked
from runner.config.named_path import place
from runner.config.run_spec import RunSpec
from runner.config.store import diff, dump_yaml
from runner.errors import Fault, SpecError
from runner.sharing.contents import config_files, digest, digests, path_of, platform_name, recipe_modules, versions

__all__ = ["check_lock", "lock_path", "write_lock"]

OPEN_KEYS = ("run.dir",)
"""Keys that may be given beside a lock: where the run goes is no part of what it computes."""
SHOWN_DIGITS = 12


def lock_path(recipe: Recipe, output: Path | None) -> Path:
    """Where a lock file goes: beside its recipe if that is a file of the person's, unless something else is asked for.

    Raises:
        SpecError: that is no name of a lock file, or the recipe is one, or it has no place of the person's own.
    """
    if recipe.locks is not None:
        rule = f"{recipe.path} is a lock file. Lock the recipe that it was made from: {recipe.locks.reference}"
        raise SpecError(Fault(key="recipe", message=rule))
    if output is not None and not is_lock(output):
        raise SpecError(Fault(key="--output", message=f"{output}: the name of a lock file ends in {LOCK_SUFFIX}."))
    if output is not None:
        return output.absolute()
    if recipe.tree is not None or recipe.is_shipped:
        return Path.cwd() / f"{recipe.name}{LOCK_SUFFIX}"
    return recipe.path.with_name(f"{recipe.name}{LOCK_SUFFIX}")


def write_lock(path: Path, composed: Composed, spec: RunSpec) -> Lock:
    """Write a lock file, or replace one.

    Args:
        spec: what was read of the composition; its secrets are masked.

    Raises:
        SpecError: a file cannot be read or written.
    """
    modules = recipe_modules(composed)
    values = escape_interpolations(dict(spec.config))
    lock = Lock(
        format=FORMAT,
        recipe=_reference(composed.recipe, path),
        origin=composed.recipe.origin,
        overrides=composed.shown_overrides,
        choices={name: option for name, option in composed.stored().source.choices.items() if "/" not in name},
        values=_digest_of_values(values),
        files=digests(config_files(composed), composed.recipe),
        modules=digests(modules.files, composed.recipe),
        packages=versions(modules),
        platform=platform_name(),
    )
    header = f"# Locked from {lock.recipe}: every value, and what they came from.\n# Try it: runner train {path.name}\n"
    try:
        durable.replace(path, header + dump_yaml({**values, LOCK: asdict(lock)}))
    except OSError as error:
        rule = f"{path} cannot be written: {error.strerror}. Choose another place: --output FILE{LOCK_SUFFIX}"
        raise SpecError(Fault(key="--output", message=rule)) from error
    _read_back(path, spec)
    return lock


def _read_back(path: Path, spec: RunSpec) -> None:
    """Compose the file: YAML that Hydra writes and YAML that it reads differ in texts such as 1e3.

    Raises:
        SpecError: a value comes back as another one. The file is removed.
    """
    changed = diff(spec.config, hidden(compose(find(str(path)), []).config))
    if changed:
        path.unlink()
        rule = "cannot be locked: it comes back as {1!r}. Give a text that no parser takes for a number."
        raise SpecError(*(Fault(key=key, message=f"{pair[0]!r} {rule.format(*pair)}") for key, pair in changed.items()))


def _reference(recipe: Recipe, path: Path) -> str:
    """The recipe's address, its name if it comes with the runner, or its path from the lock file."""
    if recipe.address or recipe.is_shipped:
        return recipe.address or recipe.path.relative_to(shipped_root() / "recipes").with_suffix("").as_posix()
    return Path(os.path.relpath(recipe.path, path.parent.resolve())).as_posix()


def check_lock(composed: Composed) -> None:
    """Return if a composition is no lock, or everything is as it was locked. Imports nothing that it names.

    Raises:
        SpecError: names each file, module, version and value that differs.
    """
    if composed.lock is None:
        return
    lock, recipe = composed.lock, composed.recipe
    faults = [*_changed_values(lock, composed), *_differences(lock, composed), *composed.faults]
    if faults:
        again = " ".join(["runner lock", recipe.source.reference, *lock.overrides])
        note = f"Put back what {recipe.path} was locked with, or lock what there is now: {again}"
        raise SpecError(*faults, note=note)


def _changed_values(lock: Lock, composed: Composed) -> Iterator[Fault]:
    path = composed.recipe.path
    try:
        page = parse(path)
    except FileFault as wrong:
        yield wrong.fault(LOCK, path)
        return
    values = {key: value for key, value in page.content.items() if key != LOCK}
    if _digest_of_values(values) != lock.values:
        yield Fault(key=LOCK, message="values in the file have been changed since it was locked.", origin=place(path))
        for key, pair in _edited(values, lock, composed.recipe.source).items():
            origin = place(path, page.line(*key.split(".")))
            yield Fault(key=key, message=f"the file has {pair[1]!r}, and its recipe gives {pair[0]!r}.", origin=origin)
    for text in composed.origins.overrides:
        key = key_of(text)
        if key not in OPEN_KEYS and not is_record_at(values, key):
            rule = "is locked. Train the recipe itself, or lock it with that override."
            yield Fault(key=key, message=rule, origin=COMMAND_LINE)


def _edited(values: Mapping[str, Any], lock: Lock, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """What the recipe gives now and what the file has, by key, where these differ; nothing if it gives faults."""
    overrides = [text for text in lock.overrides if not is_record_at(values, key_of(text))]
    try:
        given = compose(recipe, overrides).config
    except SpecError:
        return {}
    written = hidden(marked(values, origin=lambda _key: "the file"))
    changed = diff(escape_interpolations(hidden(given)), written)
    return {key: pair for key, pair in changed.items() if not is_record_at(values, key)}


def _differences(lock: Lock, composed: Composed) -> Iterator[Fault]:
    recipe = composed.recipe
    modules = recipe_modules(composed)
    there = {name: path_of(name, recipe) for name in lock.files}
    files = {name: digest(path) for name, path in there.items() if path.is_file()}
    yield from _differing(f"{LOCK}.files", lock.files, files)
    yield from _differing(f"{LOCK}.modules", lock.modules, digests(modules.files, recipe))
    yield from _differing(f"{LOCK}.packages", lock.packages, versions(modules))
    for name, was, is_now in (
        ("platform", lock.platform, platform_name()),
        ("origin", lock.origin, recipe.source.origin),
    ):
        if was != is_now:
            yield Fault(key=f"{LOCK}.{name}", message=f"it was locked with {was!r}, and this is {is_now!r}.")


def _differing(key: str, was: Mapping[str, str], is_now: Mapping[str, str]) -> Iterator[Fault]:
    for name in dict.fromkeys((*was, *is_now)):
        before, now = was.get(name), is_now.get(name)
        if before != now:
            what = f"{_shown(before)} when it was locked, {_shown(now)} now"
            yield Fault(key=key, message=f"{name}: {what}.")


def _shown(value: str | None) -> str:
    if value is None:
        return "not there"
    return f"sha256 {value[:SHOWN_DIGITS]}…" if len(value) == hashlib.sha256().digest_size * 2 else value


def _digest_of_values(values: Mapping[str, object]) -> str:
    return hashlib.sha256(dump_yaml(values).encode()).hexdigest()
