"""The spec file of a run: written once by the launching process, read by every worker and by `resume`.

Plain YAML without tags. Reading it needs neither Hydra nor OmegaConf.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from runner import durable
from runner.config.damage import Damaged, read_text, warn
from runner.config.nesting import LOADER, check_nesting
from runner.config.parts import MISSING
from runner.config.read import read as read_config
from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.config.secret import NO_SECRETS, Secret
from runner.errors import RunnerError

__all__ = [
    "Composition",
    "StoredSpec",
    "diff",
    "dump_yaml",
    "frozen_recipe",
    "load",
    "load_newest",
    "load_yaml",
    "read",
    "save",
]

FORMAT = 2
WITHOUT_ORDERS = 1
"""The format of specs in which `loader.shuffle` chose between two orders, which later options do not compute."""


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


def encode(stored: StoredSpec) -> bytes:
    """The content of a spec file."""
    page = {
        "format": FORMAT,
        "config": stored.config,
        "import_roots": stored.import_roots,
        "source": vars(stored.source),
    }
    return dump_yaml(page).encode()


def save(path: Path, stored: StoredSpec) -> None:
    """Write a spec file."""
    durable.replace(path, encode(stored))


def load(path: Path) -> StoredSpec:
    """Load a spec file.

    Raises:
        Damaged: it is not a spec file.
        RunnerError: it cannot be read, or has another format.
    """
    try:
        page = load_yaml(read_text(path))
    except FileNotFoundError as error:
        raise RunnerError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Damaged(path, f"it is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(page, dict) or not isinstance(page.get("format"), int):
        raise Damaged(path, "it is not a spec file: it has no format")
    if page["format"] == WITHOUT_ORDERS:
        return _with_order(_stored(path, page))
    if page["format"] != FORMAT:
        rule = f"its format is {page['format']}, and this version reads {FORMAT}. Use the version that wrote it."
        raise RunnerError(f"{path} cannot be read: {rule}")
    return _stored(path, page)


def load_newest(run_dir: RunDir) -> tuple[Path, StoredSpec]:
    """The newest spec file of a run that is whole. Warns of newer ones that are not.

    Raises:
        RunnerError: none is whole, or the newest whole one has another format.
    """
    newest, damaged = find_newest(run_dir)
    if newest is not None:
        for newer in damaged:
            warn(f"{newer} {newest[0].name} takes its place: give overrides of later attempts again.")
        return newest
    found = "\n".join(f"  {one}" for one in damaged)
    rule = (
        "A run cannot continue without its declaration: put a whole copy in place of one of these files, or train "
        "anew; .hydra/ has what the first attempt was composed from. Its weights: runner export --no-config "
        f"{run_dir.path}"
    )
    raise RunnerError(f"{run_dir.path} has no spec file that is whole:\n{found}\n{rule}")


def find_newest(run_dir: RunDir) -> tuple[tuple[Path, StoredSpec] | None, list[Damaged]]:
    """The newest spec file of a run that is whole, if one is, and what is wrong with each newer one.

    Raises:
        RunnerError: the newest whole one has another format.
    """
    damaged: list[Damaged] = []
    for path in reversed(run_dir.specs()):
        try:
            return (path, load(path)), damaged
        except Damaged as error:
            damaged.append(error)
    return None, damaged


def _stored(path: Path, page: Mapping[str, Any]) -> StoredSpec:
    config, roots, source = (page.get(name) for name in ("config", "import_roots", "source"))
    if not (isinstance(config, dict) and all(isinstance(key, str) for key in config)):
        raise Damaged(path, "its config is not a mapping")
    if not (isinstance(roots, list) and all(isinstance(root, str) for root in roots)):
        raise Damaged(path, "its import_roots are not a list of directories")
    types = {"recipe": str, "overrides": list, "choices": dict, "search_path": list}
    if not isinstance(source, dict) or set(source) != set(types):
        raise Damaged(path, "its source is incomplete")
    if not all(isinstance(source[name], kind) for name, kind in types.items()):
        raise Damaged(path, "its source has values of other types")
    return StoredSpec(config=config, import_roots=roots, source=Composition(**source))


def _with_order(stored: StoredSpec) -> StoredSpec:
    """A declaration of format 1 as one of format 2: its run keeps the order that it began with."""
    config, loader = dict(stored.config), stored.config.get("loader")
    shuffles = True
    if isinstance(loader, dict):
        shuffles = loader.get("shuffle") is not False
        config["loader"] = {key: value for key, value in loader.items() if key != "shuffle"}
    name, target = ("randperm", "Randperm") if shuffles else ("sequential", "Sequential")
    config["order"] = {"_target_": f"runner.order.{name}.{target}"}
    source = replace(stored.source, choices={**stored.source.choices, "order": name})
    return replace(stored, config=config, source=source)


def frozen_recipe(page: Mapping[Any, Any]) -> str | None:
    """The recipe from which a spec file was composed, empty if it does not say; None if the page is not a spec file."""
    if not {"format", "config", "import_roots", "source"} <= set(page):
        return None
    source = page["source"]
    return str(source.get("recipe", "")) if isinstance(source, dict) else ""


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
    """Load YAML safely.

    Raises:
        yaml.YAMLError: it is not YAML, or is nested or repeated beyond reason.
    """
    check_nesting(text)
    return yaml.load(text, Loader=LOADER)


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
