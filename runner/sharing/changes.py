"""What has changed around a run since its record was written: hooks, versions, the platform."""

import platform
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.config.provenance import describe_environment, hook_hashes
from runner.config.run_spec import RunSpec

__all__ = ["changed_hooks", "changed_surroundings"]


def changed_hooks(attempt: Mapping[str, Any], spec: RunSpec) -> list[str]:
    """The source files of hooks that are not those of an attempt. They are known by name: directories may differ.

    The predict hook is left out, since it does not take part in training.
    """
    recorded = _mapping(attempt, "hooks")
    before = {Path(file).name: digest for file, digest in recorded.items()}
    return [
        file
        for file, digest in hook_hashes(replace(spec, predict=None)).items()
        if before.get(Path(file).name) != digest
    ]


def changed_surroundings(attempt: Mapping[str, Any]) -> Iterator[str]:
    """A line for each version, and the platform, that is not that of an attempt."""
    now = describe_environment()
    before = {"python": attempt.get("python"), **_mapping(attempt, "versions"), "platform": attempt.get("platform")}
    after = {"python": now["python"], **now["versions"], "platform": platform.platform()}
    for name in dict.fromkeys((*before, *after)):
        was, is_now = before.get(name), after.get(name)
        if was != is_now:
            yield f"{name} was {was or 'not there'} and is {is_now or 'not there'}"


def _mapping(attempt: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = attempt.get(key)
    return found if isinstance(found, Mapping) else {}
