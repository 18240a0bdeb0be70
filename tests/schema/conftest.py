"""A project with options and hooks of its own, the schemas that are written for it, and a validator."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

from runner.cli.main import main

Invalid = Callable[[str, str], list[str]]
FILES = {
    "recipes/tiny.yaml": """
        defaults: [base, override /optimizer: mine, _self_]
        name: tiny
        model: {_target_: schema_hooks.build_model, width: 4}
        data: {_target_: schema_hooks.load_data}
        loss: {_target_: schema_hooks.loss}
        batch: {items: 64}
        run: {steps: 5}
        """,
    "recipes/deeper/child.yaml": "defaults: [/tiny, _self_]\nname: child\n",
    "conf/optimizer/mine.yaml": "_target_: schema_parts.Mine\nlr: 0.5   # how fast\nkind: warm\n",
    "conf/optimizer/heirloom.yaml": "defaults: [mine, _self_]\nlr: 0.25\n",
    "conf/optimizer/theirs.yaml": "_target_: collections.OrderedDict\nno_decay: [bias]\nlr: 1.0\n",
    "conf/tracker/table.yaml": "# @package tracker.table\n_target_: schema_parts.Table\n",
    "conf/experiment/short.yaml": "# @package _global_\ndefaults: [override /schedule: linear]\nrun: {steps: 2}\n",
    "conf/model/wide.yaml": "_target_: schema_hooks.build_model\nwidth: 64\n",
    "conf/batch/large.yaml": "items: 1024\n",
    "conf/notes/mine.yaml": "# @package whatever.else\nfree: true\n",
    "schema_hooks.py": """
        raise SystemExit("hooks are not imported")
        def build_model(*, width: int = 3, depth=2): ...
        def load_data(**anything): ...
        def loss(model, batch, *, smoothing=0.0): ...
        """,
    "schema_parts.py": '''
        from dataclasses import dataclass
        from enum import Enum

        class Kind(Enum):
            WARM = "warm"
            """Not cold."""
            COLD = "cold"

        @dataclass(frozen=True, kw_only=True)
        class Section:
            """A section."""
            deep: int = 1
            """How deep."""

        @dataclass(frozen=True, kw_only=True)
        class Mine:
            """An optimizer."""
            lr: float
            """How fast it learns."""
            kind: Kind = Kind.WARM
            """Which kind."""
            inner: Section | None = None
            """A section inside."""

        @dataclass(frozen=True, kw_only=True)
        class Table:
            """A tracker."""
            file: str = "table.csv"
            """Where."""
        ''',
}


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The project, in which `runner schema` has been called."""
    root = tmp_path_factory.mktemp("schema")
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(dedent(text).lstrip())
    path = list(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["schema"]) == 0
    sys.path[:] = path
    yield root
    sys.modules.pop("schema_parts", None)


@pytest.fixture(scope="session")
def written(project: Path) -> Path:
    """The directory of the schemas."""
    return project / ".runner" / "schema"


@pytest.fixture(scope="session")
def draft7() -> Any:
    """The validator of the draft that schemas are written in."""
    return pytest.importorskip(
        "jsonschema", reason="jsonschema is not installed: pip install '.[test]'"
    ).Draft7Validator


@pytest.fixture(scope="session")
def invalid(written: Path, draft7: Any) -> Invalid:
    """What a schema finds wrong with a text: `path: message`."""

    def check(schema: str, text: str) -> list[str]:
        validator = draft7(json.loads((written / f"{schema}.json").read_text()))
        found = validator.iter_errors(yaml.safe_load(text))
        return sorted(f"{'.'.join(map(str, one.absolute_path))}: {one.message}" for one in found)

    return check
