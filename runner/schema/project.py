"""What a project has that schemas are made of: its recipes and options, the shipped ones, and the hooks they name."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from runner.composition.config_files import choices_in_files
from runner.composition.recipe import Recipe, options, own_roots, recipe_files, search_path, shipped_root
from runner.composition.yaml_file import FileFault, Page, parse
from runner.config.imports import NotFound, import_from, locate
from runner.config.named_path import place
from runner.config.parts import MISSING, TARGET
from runner.config.read import GROUPS, HOOKS, MANY_GROUPS
from runner.errors import Fault, SpecError

__all__ = ["BASE", "Option", "Project", "read_project"]

BASE = "base"
"""The file that every recipe includes, directly or through another one."""
PACKAGE = re.compile(r"#\s*@package\s+(\S+)")
EMPTY = Page(content={}, lines=(), root=None)


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option file."""

    group: str
    name: str
    package: str
    """Dotted key that its content is placed under; empty = the root."""
    content: Mapping[str, Any]
    target: str | None
    """What it names, or the option that it extends; None = nothing."""
    part: type[Any] | None = None
    """The dataclass that this is; None = it is none, such as a class of another library."""

    @property
    def section(self) -> str:
        """The section or group of the declaration that it belongs to; empty if it may set all of them."""
        return self.package.partition(".")[0]


@dataclass(frozen=True, kw_only=True)
class Project:
    """A working directory, and what comes with the runner."""

    groups: Mapping[str, Sequence[Option]]
    choices: Mapping[str, Mapping[str, str]]
    """The option of each group in base and in each recipe."""
    hooks: Mapping[str, Sequence[str]]
    """What recipes name as their model, data and loss."""
    roots: Sequence[str]
    """Directories that hooks are imported from."""


def read_project() -> Project:
    """Read the working directory's recipes and options. Imports the parts that options name, and no hook.

    Raises:
        SpecError: with a fault for each file that cannot be read, and each option whose target cannot be imported.
    """
    roots = own_roots()
    import_from(roots)
    faults: list[Fault] = []
    directories = [Path.cwd() / "conf", shipped_root() / "conf"]
    recipes = {BASE: shipped_root() / "conf" / f"{BASE}.yaml", **recipe_files()}
    contents = [_read(path, name, faults).content for name, path in recipes.items()]
    groups = {
        group: [
            _with_part(option, directories, faults) for option in _options(group, names, directories, faults).values()
        ]
        for group, names in options(directories).items()
    }
    if faults:
        raise SpecError(*faults)
    return Project(
        groups=groups,
        choices={name: dict(_choices(Recipe(path))) for name, path in recipes.items()},
        hooks={hook: list(dict.fromkeys(_targets(contents, hook))) for hook in HOOKS},
        roots=roots,
    )


def _read(path: Path, name: str, faults: list[Fault]) -> Page:
    try:
        return parse(path)
    except FileFault as wrong:
        faults.append(wrong.fault(name, path))
        return EMPTY


def _options(group: str, names: Sequence[str], directories: Sequence[Path], faults: list[Fault]) -> dict[str, Option]:
    found = {name: _option(group, name, directories, faults) for name in names}
    return {name: replace(option, target=_target_of(option, found)) for name, option in found.items()}


def _option(group: str, name: str, directories: Sequence[Path], faults: list[Fault]) -> Option:
    page = _read(_file(group, name, directories), f"{group}/{name}", faults)
    target = page.content.get(TARGET)
    return Option(
        group=group,
        name=name,
        package=_package(page, group),
        content=page.content,
        target=target if isinstance(target, str) and target != MISSING else None,
    )


def _file(group: str, name: str, directories: Sequence[Path]) -> Path:
    return next(path for one in directories if (path := one / group / f"{name}.yaml").is_file())


def _with_part(option: Option, directories: Sequence[Path], faults: list[Fault]) -> Option:
    if option.section not in (*GROUPS, *MANY_GROUPS) or option.target is None:
        return option
    try:
        found = locate(option.target)
    except NotFound as missing:
        rule = f"{option.target} cannot be imported: {missing}"
        origin = place(_file(option.group, option.name, directories))
        faults.append(Fault(key=f"{option.group}/{option.name}", message=rule, origin=origin))
        return option
    return replace(option, part=found if isinstance(found, type) and is_dataclass(found) else None)


def _package(page: Page, group: str) -> str:
    """Where the header of an option file says that its content belongs; otherwise to its group."""
    header = takewhile(lambda line: line.startswith("#") or not line.strip(), page.lines)
    found = next((match[1] for line in header if (match := PACKAGE.match(line))), "_group_")
    return found.replace("_group_", group.replace("/", ".")).removeprefix("_global_").lstrip(".")


def _target_of(option: Option, others: Mapping[str, Option]) -> str | None:
    """The target of an option, or of the option of its group that it extends."""
    waiting, seen = [option], set[str]()
    while waiting:
        one = waiting.pop()
        if one.target is not None:
            return one.target
        if one.name not in seen:
            seen.add(one.name)
            names = one.content.get("defaults")
            waiting += [others[name] for name in names or () if isinstance(name, str) and name in others]
    return None


def _choices(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The option of each group that has one."""
    for choice in choices_in_files(recipe, search_path(recipe), ()):
        if choice.group in GROUPS and len(choice.options) == 1:
            yield choice.group, choice.options[0]


def _targets(contents: Sequence[Mapping[str, Any]], hook: str) -> Iterator[str]:
    for content in contents:
        node = content.get(hook)
        target = node.get(TARGET) if isinstance(node, Mapping) else None
        if isinstance(target, str) and target != MISSING:
            yield target
