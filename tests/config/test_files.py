"""A file that a part is told of is read once, when the spec is composed; what stood in it is what is frozen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.config import store
from runner.config.files import JsonFile
from runner.config.read import read


@pytest.fixture(params=["checkpoint", "tracker.first"])
def told(request: pytest.FixtureRequest, config: dict[str, Any], parts: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A configuration whose part is told of file.json in the working directory, the part's node and the part."""
    monkeypatch.chdir(parts)
    group, _, name = request.param.partition(".")
    node = {"_target_": "spec_parts.Told", "file": "file.json"}
    config[group] = {name: node} if name else node

    def found(holder: Any) -> Any:
        return holder[group][name] if name else holder[group]

    return config, found


def test_the_frozen_spec_holds_what_stood_in_the_file(told: Any, parts: Path, tmp_path: Path) -> None:
    config, found = told
    (parts / "file.json").write_text(json.dumps({"width": 3, "rates": [1e-8, None]}))
    spec = read(config, import_roots=[str(parts)])
    assert found(config)["file"] == "file.json"  # what was given stays as it was
    assert found(spec.config)["file"] == {"path": "file.json", "content": {"width": 3, "rates": [1e-8, None]}}
    (parts / "file.json").unlink()
    path = tmp_path / "spec.yaml"
    store.save(
        path, store.StoredSpec(config=spec.config, import_roots=[str(parts)], source=store.Composition(recipe="toy"))
    )
    for again in (store.read(path), read(spec.config, import_roots=[str(parts)])):
        assert found(vars(again)).file.parsed == {"width": 3, "rates": [1e-8, None]}
        assert again.config == spec.config


def test_a_part_judges_what_stands_in_its_file(
    faults: Callable[[dict[str, Any]], dict[str, str]], parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(parts)
    (parts / "file.json").write_text('{"width": 9}')
    node = {"_target_": "spec_parts.Told", "file": "file.json"}
    assert faults({"checkpoint": node}) == {"checkpoint.file": "file.json is too wide."}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read: No such file or directory. Give the path of a JSON file."),
        ("{", "is not JSON: Expecting"),
        ("[]", "holds a list; it must hold a JSON object"),
        ('{"a": {"b": 1, "c": 2, "b": 3}, "d": 1, "d": 1}', "has duplicate keys: b, d. Keep one of each."),
        (b"\xff\xfe", "is not JSON: it is not text."),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_all_else(
    faults: Callable[[dict[str, Any]], dict[str, str]],
    parts: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: bytes | str | None,
    words: str,
) -> None:
    monkeypatch.chdir(parts)
    if text is not None:
        (parts / "file.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    node = {"_target_": "spec_parts.Told", "file": "file.json"}
    found = faults({"checkpoint": node, "clip.norm": -1})
    assert found["checkpoint.file"].startswith(f"file.json {words}")
    assert found.keys() == {"checkpoint.file", "clip.norm"}


@pytest.mark.parametrize("value", [{"content": {}}, {"path": "a", "content": 1}, 3])
def test_what_is_no_path_is_refused(faults: Callable[[dict[str, Any]], dict[str, str]], value: Any) -> None:
    found = faults({"checkpoint": {"_target_": "spec_parts.Told", "file": value}})
    assert found["checkpoint.file"].endswith("must be the path of a JSON file or null.")


def test_a_file_that_was_never_read_is_no_empty_one() -> None:
    with pytest.raises(AssertionError, match=r"file.json was not read when the spec was composed"):
        _ = JsonFile(path="file.json").parsed
