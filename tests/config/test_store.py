"""What was declared comes back as it was; what changed is found by its dotted key; attempts are listed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.config import provenance, store
from runner.config.parts import MISSING
from runner.config.read import read
from runner.errors import RunnerError


def stored(config: Any, root: Any, **changes: Any) -> Any:
    values = {"import_roots": [str(root)], "source": store.Composition(recipe="toy.yaml")}
    return store.StoredSpec(config=config, **{**values, **changes})


def test_a_spec_comes_back_as_it_was(config: dict[str, Any], parts: Path) -> None:
    config["checkpoint"] = {"_target_": "spec_parts.Plain", "rate": 1e-8, "names": ["a", "ä"], "limit": None}
    path = parts / "spec.yaml"
    store.save(path, stored(config, parts))
    assert store.load(path) == stored(config, parts)
    again, before = store.read(path), read(config, import_roots=[str(parts)])
    assert (again.config, again.batch, again.checkpoint) == (before.config, before.batch, before.checkpoint)


def test_reading_a_spec_imports_neither_hydra_nor_omegaconf(config: dict[str, Any], parts: Path) -> None:
    path = parts / "spec.yaml"
    store.save(path, stored(config, parts))
    code = f"import sys; from pathlib import Path; from runner.config import store; store.read(Path({str(path)!r})); "
    code += "print([name for name in sys.modules if name.split('.')[0] in ('hydra', 'omegaconf', 'torch')])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "is damaged: it is not YAML"), ("format: 9", "cannot be read: its format is 9, and this")],
)
def test_a_file_that_is_no_spec_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(RunnerError, match=f"spec.yaml {words}"):
        store.load(tmp_path / "spec.yaml")


def test_a_difference_is_told_by_its_dotted_key() -> None:
    old = {"a": {"b": 1, "c": {}}, "d": [1]}
    assert store.diff(old, {"a": {"b": 2, "c": {}}, "e": None}) == {
        "a.b": (1, 2),
        "d": ([1], MISSING),
        "e": (MISSING, None),
    }


def test_provenance_has_one_entry_an_attempt(
    config: dict[str, Any], parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no git repository: that must not fail
    spec = read(config, import_roots=[str(parts)])
    path = tmp_path / "provenance.json"
    provenance.record(path, provenance.describe(spec, command=["runner", "train", "toy"]))
    provenance.record(path, provenance.describe(spec, command=["runner", "resume", "."]))
    first, second = provenance.read(path)
    assert (first["command"][1], second["command"][1]) == ("train", "resume")
    assert first["git"] is None
    assert first["versions"]["torch"]
    assert list(first["hooks"]) == [str(parts / "spec_parts.py")]
    assert len(next(iter(first["hooks"].values()))) == 64


@pytest.mark.parametrize(("shuffle", "order"), [(True, "randperm"), (False, "sequential"), (None, "randperm")])
def test_a_run_from_before_there_were_orders_keeps_its_own(tmp_path: Path, shuffle: bool | None, order: str) -> None:
    loader = {"workers": 2} if shuffle is None else {"workers": 2, "shuffle": shuffle}
    page = {
        "format": 1,
        "config": {"name": "old", "loader": loader},
        "import_roots": [],
        "source": {"recipe": "old.yaml", "overrides": [], "choices": {"schedule": "cosine"}, "search_path": []},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(page))
    stored = store.load(tmp_path / "spec.yaml")
    assert stored.config["loader"] == {"workers": 2}
    assert stored.config["order"] == {"_target_": f"runner.order.{order}.{order.capitalize()}"}
    assert stored.source.choices == {"schedule": "cosine", "order": order}
