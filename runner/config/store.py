"""The spec file of a run: written once by the launching process, read by every worker and by `resume`.

Plain YAML without tags. Reading it needs neither Hydra nor OmegaConf.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from runner import durable
from runner.config.parts import MISSING
from runner.config.read import read as read_config
from runner.config.run_spec import RunSpec
from runner.config.secret import NO_SECRETS, Secret
from runner.errors import RunnerError

__all__ = ["Composition", "StoredSpec", "diff", "dump_yaml", "load", "load_yaml", "read", "save"]

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Composition:
    """What a configuration was composed from."""

    recipe: str
    """The recipe's file."""
    overrides: list[str] = field(default_factory=list)
    """Those of the command line, in order."""
    choices: dict[str, Any] = field(default_factory=dict)
    """The option of each group."""
    search_path: list[str] = field(default_factory=list)
    """Directories that were searched for groups, first to last."""


@dataclass(frozen=True, kw_only=True)
class StoredSpec:
    """The content of a spec file."""

    config: dict[str, Any]
    import_roots: list[str]
    source: Composition


def save(path: Path, stored: StoredSpec) -> None:
    """Write a spec file."""
    page = {
        "format": FORMAT,
        "config": stored.config,
        "import_roots": stored.import_roots,
        "source": vars(stored.source),
    }
    durable.replace(path, dump_yaml(page))


def load(path: Path) -> StoredSpec:
    """Load a spec file.

    Raises:
        RunnerError: it is not a spec file, or has another format.
    """
    try:
        page = load_yaml(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise RunnerError(f"{path} cannot be read: {error}") from error
    if not isinstance(page, dict) or page.get("format") != FORMAT:
        found = page.get("format") if isinstance(page, dict) else None
        raise RunnerError(
            f"{path} is not a spec file of format {FORMAT} (its format is {found}). Use the version that wrote it."
        )
    source = Composition(**page["source"])
    return StoredSpec(
        config=page["config"],
        import_roots=page["import_roots"],
        source=source,
    )


def read(path: Path, secrets: Mapping[str, Secret] = NO_SECRETS, *, keep: bool = False) -> RunSpec:
    """Load a spec file as a RunSpec, without checking it again, and put its import roots on sys.path.

    Args:
        secrets: values that the launcher has handed over, by dotted key; others are taken from the environment.
        keep: leave a secret that cannot be had as it is recorded: for those who look at something else in the spec.

    Raises:
        RunnerError: it is not a spec file.
        SpecError: it has faults, after a change by hand, or a secret is not in the environment.
    """
    stored = load(path)
    return read_config(
        stored.config,
        import_roots=stored.import_roots,
        origin=lambda _key: str(path),
        check=False,
        secrets=secrets,
        keep=keep,
    )


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The old and new values of all dotted keys that differ; MISSING stands for a key that is absent."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    return {
        key: (before.get(key, MISSING), after.get(key, MISSING))
        for key in dict.fromkeys((*before, *after))
        if before.get(key, MISSING) != after.get(key, MISSING)
    }


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def load_yaml(text: str) -> Any:
    """Load YAML safely, with the C parser where libyaml is available (ten times faster)."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def dump_yaml(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """Dump plain YAML, in the order of the keys."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(
        yaml.dump(
            value,
            Dumper=dumper,
            sort_keys=False,
            default_flow_style=False,
            allow_unicode=True,
            width=120,
        )
    )
