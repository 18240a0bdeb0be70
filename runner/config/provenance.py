"""Provenance of a run: versions, machine, code and command, with an entry for each attempt."""

import hashlib
import inspect
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from runner import durable
from runner.config.damage import Damaged, list_of_objects, read_json, set_aside, warn
from runner.config.imports import NotFound, locate
from runner.config.run_spec import RunSpec

__all__ = [
    "committed",
    "describe",
    "describe_code",
    "describe_environment",
    "hook_hashes",
    "note",
    "note_commit",
    "read",
    "record",
]

COMMITTED = "committed"
"""The key in an attempt's entry whose value is the step of one checkpoint that the run has committed by then."""

PACKAGES = (
    "hydra-runner",
    "torch",
    "hydra-core",
    "omegaconf",
    "numpy",
    "safetensors",
    "tensorboard",
    "wandb",
)


def describe(spec: RunSpec, *, command: list[str]) -> dict[str, Any]:
    """The entry of an attempt, as JSON values."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
        "directory": os.getcwd(),
        **describe_environment(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "host": platform.node(),
        "git": _git(),
        "hooks": hook_hashes(spec),
        "recipe_version": spec.version,
    }


def describe_code(spec: RunSpec) -> dict[str, Any]:
    """What must be equal on all machines of a run."""
    hooks = {Path(file).name: digest for file, digest in hook_hashes(spec).items()}
    return {**describe_environment(), "hooks": hooks}


def describe_environment() -> dict[str, Any]:
    """The versions of Python and of the libraries on which results depend."""
    return {"python": _python(), "versions": _versions()}


def record(path: Path, attempt: Mapping[str, Any]) -> None:
    """Append an attempt to the list in a file, atomically. A file that is damaged is set aside and begun again."""
    _write(path, [*_read_or_set_aside(path), attempt])


def note(path: Path, key: str, value: Any) -> None:
    """Add something found during the last attempt to its entry, atomically."""
    attempts = _read_or_set_aside(path)
    last = attempts[-1] if attempts else {}
    _write(path, [*attempts[:-1], {**last, key: value}])


def note_commit(path: Path, step: int) -> None:
    """Note that the run has committed a checkpoint, once for each attempt."""
    if not any(COMMITTED in attempt for attempt in _read_or_set_aside(path)[-1:]):
        note(path, COMMITTED, step)


def committed(path: Path) -> list[int]:
    """Steps of checkpoints that the run is known to have committed, whether they still exist or not.

    Raises:
        Damaged: the file does not hold a list of attempts.
    """
    return [attempt[COMMITTED] for attempt in read(path) if type(attempt.get(COMMITTED)) is int]


def read(path: Path) -> list[dict[str, Any]]:
    """Every attempt so far, oldest first.

    Raises:
        Damaged: the file does not hold a list of attempts.
    """
    try:
        return read_json(path, list_of_objects)
    except FileNotFoundError:
        return []


def _read_or_set_aside(path: Path) -> list[dict[str, Any]]:
    try:
        return read(path)
    except Damaged as damaged:
        warn(f"{damaged} It is set aside as {set_aside(path).name}, and a new one begins.")
        return []


def hook_hashes(spec: RunSpec) -> dict[str, str]:
    """The SHA-256 of each hook's source file, by path. Modules without a file are left out."""
    hashes: dict[str, str] = {}
    for hook in spec.hooks.values():
        try:
            file = inspect.getsourcefile(inspect.unwrap(locate(hook.target)))
        except (NotFound, TypeError):
            continue
        if file is not None and Path(file).exists():
            hashes[file] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return hashes


def _write(path: Path, attempts: Sequence[Mapping[str, Any]]) -> None:
    durable.replace(path, json.dumps(attempts, indent=2) + "\n")


def _python() -> str:
    return sys.version.split()[0]


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git() -> dict[str, Any] | None:
    """Commit of the working directory and whether it has changes; None without git or outside a repository."""
    ask = partial(subprocess.run, capture_output=True, text=True, timeout=5, check=True)
    try:
        commit = ask(["git", "rev-parse", "HEAD"]).stdout.strip()
        dirty = bool(ask(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip())
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": dirty}
