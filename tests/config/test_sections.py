"""Dataclasses inside a part: nested sections, and flattened ones whose keys stand at the part's own level."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from runner.config.files import JsonFile
from runner.config.parts import build_section
from runner.config.read import read
from runner.config.read_files import read_files
from runner.config.sections import entries, flattened, key_names, leaf_names


@dataclass(frozen=True, kw_only=True)
class Retention:
    keep_last: int | None = 3
    metric: str = "eval/loss"

    def __post_init__(self) -> None:
        if self.keep_last is not None and self.keep_last < 1:
            raise ValueError(f"keep_last={self.keep_last} must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class Network:
    host: str
    port: int = 80
    config: JsonFile | None = None

    def __post_init__(self) -> None:
        if self.port < 1:
            raise ValueError(f"port={self.port} must be positive.")


@dataclass(frozen=True, kw_only=True)
class Limits:
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Store:
    every_steps: int = 500
    retention: Retention = flattened(Retention, metric="train/loss")
    network: Network
    limits: Limits = Limits(high=9.0)
    backup: Network | None = None

    def __post_init__(self) -> None:
        if self.limits.high > 10:
            raise ValueError(f"limits.high={self.limits.high} must be at most 10.")
        if self.retention.metric == "none":
            raise ValueError("metric=none is no metric.")


NETWORK = {"host": "a"}


def build(**values: Any) -> Any:
    return build_section(Store, {"network": NETWORK, **values}, key="store")


def faults(**values: Any) -> Any:
    return {fault.key: fault.message for fault in build(**values).faults}


def test_keys_of_a_flattened_field_stand_at_the_parts_own_level() -> None:
    built = build(keep_last="5", every_steps=10)
    assert built.faults == []
    assert built.value == Store(
        every_steps=10, retention=Retention(keep_last=5, metric="train/loss"), network=Network(host="a")
    )
    assert key_names(Store) == ["every_steps", "keep_last", "metric", "network", "limits", "backup"]
    assert leaf_names(Store)[:4] == ["every_steps", "keep_last", "metric", "network.host"]


def test_a_nested_section_is_a_mapping_and_keeps_the_defaults_of_its_field() -> None:
    built = build(limits={"low": -1}, backup={"host": "b", "port": "8"})
    assert built.faults == []
    assert built.value.limits == Limits(low=-1.0, high=9.0)
    assert built.value.backup == Network(host="b", port=8)
    assert build(backup=None).value.backup is None


def test_flattened_and_nested_fields_have_the_defaults_of_the_dataclass() -> None:
    assert build().value == Store(network=Network(host="a"))
    assert Store(network=Network(host="a")).retention.metric == "train/loss"


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({"keep_lats": 1}, "store.keep_lats", "Store has no such key. Did you mean keep_last? It has: backup, every_"),
        ({"retention": {"keep_last": 1}}, "store.retention", "Store has no such key."),
        ({"keep_last": "x"}, "store.keep_last", "'x' must be a whole number or null."),
        ({"keep_last": 0}, "store.keep_last", "keep_last=0 must be at least 1."),
        ({"metric": "???"}, "store.metric", "must be given."),
        ({"metric": "none"}, "store.metric", "metric=none is no metric."),
        ({"network": {"host": "a", "prot": 1}}, "store.network.prot", "Network has no such key. Did you mean port?"),
        ({"network": {"host": "a", "port": "b"}}, "store.network.port", "'b' must be a whole number."),
        ({"network": {"host": "a", "port": 0}}, "store.network.port", "port=0 must be positive."),
        ({"network": {"host": "???"}}, "store.network.host", "must be given."),
        ({"network": {}}, "store.network.host", "must be given."),
        ({"network": None}, "store.network", "null must be a mapping."),
        ({"backup": 3}, "store.backup", "3 must be a mapping or null."),
        ({"limits": {"high": 11}}, "store.limits.high", "limits.high=11.0 must be at most 10."),
    ],
)
def test_a_fault_names_the_key_as_it_stands_in_yaml(values: Any, key: str, words: str) -> None:
    found = faults(**values)
    assert list(found) == [key]
    assert words in found[key]


def test_all_faults_of_all_levels_are_found() -> None:
    found = faults(evry=1, keep_last=0, network={"host": 1, "port": "x"}, limits={"low": "y"}, backup={"port": 0})
    assert found.keys() == {
        "store.evry", "store.keep_last", "store.network.port", "store.limits.low", "store.backup.host",
    }  # fmt: skip
    assert {fault.key for fault in build_section(Store, {}, key="store").faults} == {"store.network"}


def test_a_key_that_two_fields_have_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Twice:
        metric: str = ""
        retention: Retention = flattened(Retention)

    with pytest.raises(TypeError, match=r"Twice has two fields for the key metric\. Rename one of them\."):
        entries(Twice)


def test_only_a_dataclass_can_be_flattened() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wrong:
        names: list[str] = flattened(list)

    with pytest.raises(TypeError, match=r"names is flattened, but its type list\[str\] is not a dataclass\."):
        entries(Wrong)


@dataclass(frozen=True, kw_only=True)
class Files:
    file: JsonFile | None = None


@dataclass(frozen=True, kw_only=True)
class Holder:
    own: Files = flattened(Files)
    nested: Files = field(default_factory=Files)


def test_files_inside_sections_are_read_and_frozen_in_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text('{"a": 1}')
    node = {"_target_": "x", "file": "a.json", "nested": {"file": "missing.json"}}
    part = build_section(Holder, {"file": "a.json", "nested": node["nested"]}, key="store").value
    result = read_files(part, node, key="store")
    assert result.part.own.file.parsed == {"a": 1}
    assert [fault.key for fault in result.faults] == ["store.nested.file"]
    assert result.node == {
        "_target_": "x",
        "file": {"path": "a.json", "content": {"a": 1}},
        "nested": {"file": {"path": "missing.json", "content": {}}},
    }
    again = build_section(Holder, {key: result.node[key] for key in ("file", "nested")}, key="store")
    assert again.value == result.part
    assert read_files(again.value, result.node, key="store").part is again.value


def test_a_worker_reads_the_sections_that_were_frozen(config: dict[str, Any], parts: Path) -> None:
    (parts / "spec_sections.py").write_text(SECTIONS)
    (parts / "file.json").write_text(json.dumps({"b": 2}))
    config["checkpoint"] = {
        "_target_": "spec_sections.Nested", "keep_last": "2", "inner": {"file": str(parts / "file.json")},
    }  # fmt: skip
    spec = read(config, import_roots=[str(parts)])
    worker = read(spec.config, import_roots=[str(parts)], check=False)
    assert worker.checkpoint == spec.checkpoint
    checkpoint: Any = worker.checkpoint
    assert checkpoint.inner.file.parsed == {"b": 2}
    assert checkpoint.shared.keep_last == 2


SECTIONS = """
from dataclasses import dataclass, field
from runner.config.files import JsonFile
from runner.config.sections import flattened


@dataclass(frozen=True, kw_only=True)
class Shared:
    keep_last: int = 1


@dataclass(frozen=True, kw_only=True)
class Inner:
    file: JsonFile | None = None


@dataclass(frozen=True, kw_only=True)
class Nested:
    shared: Shared = flattened(Shared)
    inner: Inner = Inner()

    def check(self, spec):
        return ()
"""
