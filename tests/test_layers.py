"""The house: imports point down only, and no option is known outside its own file."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping, Set
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).parent.parent
PACKAGE = CHECKOUT / "runner"
LAYERS = (
    {"errors", "terminal", "log", "durable"},
    {"protocols", "config"},
    {"world", "model", "losses"},
    {"storage", "data", "prediction"},
    {
        "hardware",
        "strategy",
        "precision",
        "checkpoint",
        "tracker",
        "callback",
        "metric",
        "optimizer",
        "order",
        "schedule",
    },
    {"teams"},
    {"engine"},
    {"worker"},
    {"launch", "composition", "migrate"},
    {"schema", "sharing"},
    {"runs", "machine", "new_project"},
    {"selftest"},
    {"cli", "api", "__main__"},
)
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
OPTION_ROOMS = LAYERS[4]
COMMON_WORDS = {"none", "cpu"}  # `device.type == "cpu"` asks where a tensor's bytes are, not for an option
CLOSED_BY_TYPES = (
    # A part is checked beside the whole spec, and a spec holds parts: the protocols name RunSpec, and it names them.
    {"runner.protocols*", "runner.config.run_spec", "runner.config.models"},
)
"""Circles that only annotations close (`if TYPE_CHECKING`)."""
MAX_LINES = 300
FRONT = "__init__"  # runner/__init__.py: the version and what hooks import
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_shipped" not in path.parts)
TARGETS = {
    path: yaml.safe_load(path.read_text())["_target_"].rpartition(".")[0]
    for path in sorted((CHECKOUT / "conf").glob("*/*.yaml"))
}


def name_of(path: Path) -> str:
    """runner/engine/loop.py: runner.engine.loop; a package's __init__ has the package's name."""
    parts = path.relative_to(CHECKOUT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


@cache
def imports(path: Path, *, for_types: bool = True) -> frozenset[str]:
    """The dotted names that a module imports from this package, inside functions too; perhaps only for its types."""
    return frozenset(_imports(path, for_types=for_types))


def _imports(path: Path, *, for_types: bool) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    if not for_types:
        tree = WithoutTypeChecking().visit(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "runner")
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.module.split(".")[0] == "runner":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in NAMES else node.module


class WithoutTypeChecking(ast.NodeTransformer):
    """Drops what stands under `if TYPE_CHECKING`."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        known = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if known else self.generic_visit(node)


@cache
def texts(path: Path) -> list[tuple[int, str]]:
    """Every string constant of a module, with its line."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [
        (node.lineno, node.value) for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


@cache
def compared(path: Path) -> list[tuple[int, set[object]]]:
    """The constants in every comparison of a module, with its line."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Compare)]
    return [(node.lineno, {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)}) for node in nodes]


def room_of(name: str) -> str:
    """The room of a dotted name; the package itself is its front."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else FRONT


def circles(*, for_types: bool) -> set[frozenset[str]]:
    """The largest groups of modules that all import one another, directly or through others of the group."""
    imported = {name_of(path): imports(path, for_types=for_types) for path in MODULES}
    reached = {name: reachable(name, imported) for name in imported}
    groups = {frozenset(other for other in reached[name] if name in reached.get(other, ())) for name in imported}
    return groups - {frozenset()}


def reachable(name: str, imported: Mapping[str, Set[str]]) -> set[str]:
    """What a module imports, directly or not; itself only if it is in a circle."""
    found: set[str] = set()
    coming = set(imported[name])
    while coming:
        found |= coming
        coming = {further for one in coming for further in imported.get(one, ())} - found
    return found


def test_every_room_has_a_layer() -> None:
    rooms = {room_of(name_of(path)) for path in MODULES} - {FRONT}
    assert rooms <= set(HEIGHT), f"no layer for {sorted(rooms - set(HEIGHT))}; docs/design.md has the map"


NAMES = {name_of(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down_only(path: Path) -> None:
    own = room_of(name_of(path))
    for name in imports(path, for_types=own != FRONT):
        room = room_of(name)
        if own == FRONT:
            assert HEIGHT[room] <= 1, f"the front imports {name}: hooks would import all of that"
        elif room not in (own, FRONT):
            down = HEIGHT[room] < HEIGHT[own] or (HEIGHT[room] == HEIGHT[own] and HEIGHT[own] != HEIGHT["strategy"])
            assert down, f"{own} imports {name}, which does not stand below it"
        if own == "engine":
            assert room not in OPTION_ROOMS, f"the engine imports {name}: it sees parts through protocols"


def test_no_files_import_each_other_in_a_circle() -> None:
    """Inside a room neither. An import inside a function counts as well."""
    assert circles(for_types=False) == set()


def test_annotations_close_no_circle_but_those_known() -> None:
    for circle in circles(for_types=True):
        known = any(all(any(fnmatch(name, one) for one in group) for name in circle) for group in CLOSED_BY_TYPES)
        assert known, f"import each other, if only for types: {sorted(circle)}"


def test_no_file_is_too_long_to_read() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


@pytest.mark.parametrize("option", TARGETS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_nothing_but_its_own_file_names_an_option(option: Path) -> None:
    """Neither by import nor by dotted path; and nobody asks whether a name is the option's."""
    target = TARGETS[option]
    for path in MODULES:
        # One option may be made of others of its group (hardware=auto); what they share may not know them.
        if path.is_relative_to(PACKAGE / option.parent.name) and name_of(path) in TARGETS.values():
            continue
        assert target not in imports(path, for_types=False), f"{name_of(path)} imports {target}"
        for line, text in texts(path):
            assert target not in text, f"{name_of(path)}:{line} names {target}"
        for line, words in compared(path):
            assert option.stem not in words - COMMON_WORDS, f"{name_of(path)}:{line} asks for {option.stem}"


@pytest.mark.parametrize("module", ["runner", "runner.config.read", "runner.protocols", "runner.cli.main"])
def test_torch_is_not_imported_by(module: str) -> None:
    said = f"import sys, {module}; print(sorted({{'torch', 'hydra', 'wandb', 'tensorboard'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", said], cwd=CHECKOUT, stdout=subprocess.PIPE, timeout=60, check=True)
    assert done.stdout == b"[]\n"


def test_what_is_imported_at_the_top_is_declared() -> None:
    """It is in the standard library or among pyproject.toml's dependencies; what is optional is imported inside."""
    declared = {"torch", "hydra", "omegaconf", "yaml", "numpy", "safetensors", "xxhash", "tensorboard", "wandb", "rich"}
    for path in MODULES:
        tree = WithoutTypeChecking().visit(ast.parse(path.read_text()))
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name_of(path)}:{node.lineno} is a relative import"
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                assert top in sys.stdlib_module_names | declared | {"runner"}, f"{name_of(path)} imports {name}"
