"""Files of a run's directory with random damage: read, or reported by name; never anything else.

`make test-all` tries 2,000 mutations of each file, the ordinary suite 150.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.config import provenance, store
from runner.config.records import damaged_lines, end_of, last_values
from runner.config.repair import repair
from runner.config.run_dir import RunDir
from runner.config.store import Composition, StoredSpec
from runner.errors import RunnerError

SIZES = pytest.mark.parametrize(
    "examples", [pytest.param(150, id="some"), pytest.param(2_000, id="many", marks=pytest.mark.exhaustive)]
)
READ = "it was read"
LINES = [{"step": step, "time_s": 0.5 * step, "train/loss": 1 / step} for step in range(1, 30)]


def write_whole(run_dir: RunDir) -> None:
    """A directory in which nothing is damaged."""
    config: dict[str, Any] = {"name": "toy", "run": {"steps": 5, "dir": None}, "betas": [0.9, 0.99], "path": "a: b"}
    save = StoredSpec(config=config, import_roots=["/here"], source=Composition(recipe="recipes/toy.yaml"))
    store.save(run_dir.spec, save)
    store.save(run_dir.path / "spec.attempt_2.yaml", save)
    provenance.record(run_dir.provenance, {"time": "now", "run_id": run_dir.read_id(), "hooks": {"a.py": "0" * 64}})
    run_dir.metrics.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    run_dir.write_status("preempted", step=29, metrics={"train/loss": 1 / 29, "eval/loss": 0.1})
    run_dir.note_guard(3, [{"rank": 0, "module": "layers.3"}])


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Some changes of bytes: flipped bits, cut, removed, doubled and inserted parts."""
    changes = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["flip", "cut", "remove", "double", "insert"]),
                st.floats(0, 1),
                st.integers(0, 40),
                st.binary(min_size=1, max_size=8),
            ),
            min_size=1,
            max_size=4,
        )
    )

    def mutate(content: bytes) -> bytes:
        for kind, place, size, added in changes:
            at = int(place * len(content))
            before, part, after = content[:at], content[at : at + size], content[at + size :]
            if kind == "flip" and after:
                after = bytes([after[0] ^ (1 << size % 8)]) + after[1:]
            content = {
                "flip": before + part + after,
                "cut": before,
                "remove": before + after,
                "double": before + part + part + after,
                "insert": before + added + part + after,
            }[kind]
        return content

    return mutate


def check_with(examples: int, check: Callable[[Callable[[bytes], bytes]], None]) -> None:
    """Call it with so many mutations."""
    slow = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    bounded = settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=slow
    )
    bounded(given(mutations())(check))()


def said(read: Callable[[], object]) -> str:
    """The message of the runner's error that this raises, or READ."""
    try:
        read()
    except RunnerError as error:
        return str(error)
    return READ


@pytest.mark.fault(
    "bytes of status, provenance, guard, id, spec or metrics are mutated", "the file is read, or reported by name"
)
@SIZES
@pytest.mark.parametrize("name", ["status", "provenance", "guard", "id", "spec", "metrics"])
def test_a_mutated_file_is_read_or_reported_by_name(tmp_path: Path, name: str, examples: int) -> None:
    run_dir = RunDir(tmp_path)
    write_whole(run_dir)
    path: Path = getattr(run_dir, name)
    whole = path.read_bytes()
    readers: dict[str, Callable[[], object]] = {
        "status": run_dir.read_status,
        "provenance": lambda: provenance.read(path),
        "guard": run_dir.read_guard,
        "id": run_dir.check_id,
        "spec": lambda: store.load(path),
        "metrics": lambda: (damaged_lines(path), end_of(path, 9), last_values(path)),
    }

    def check(mutate: Callable[[bytes], bytes]) -> None:
        path.write_bytes(mutate(whole))
        assert said(readers[name]).startswith((READ, f"{path} is damaged: ", f"{path} cannot be read: its format is "))

    check_with(examples, check)


@pytest.mark.fault(
    "bytes of all of them are mutated at once",
    "the repaired directory is whole; what is lost of metrics.jsonl stays beside it",
)
@SIZES
def test_whatever_is_mutated_a_repaired_directory_is_whole(
    tmp_path: Path, examples: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """All files at once but the first spec. What is lost of metrics.jsonl is in the file beside it."""
    run_dir = RunDir(tmp_path)
    write_whole(run_dir)
    run_dir.path.joinpath("spec.attempt_2.yaml").rename(tmp_path / "newest")
    paths = [run_dir.status, run_dir.provenance, run_dir.guard, run_dir.id, run_dir.metrics]
    whole = {path: path.read_bytes() for path in paths} | {
        tmp_path / "spec.attempt_2.yaml": (tmp_path / "newest").read_bytes()
    }

    def check(mutate: Callable[[bytes], bytes]) -> None:
        for aside in tmp_path.glob("*.damaged-*"):
            aside.unlink()
        for path, content in whole.items():
            path.write_bytes(mutate(content))
        repaired = said(lambda: repair(run_dir))
        assert repaired == READ or ".yaml cannot be read: its format is" in repaired
        assert repaired == said(lambda: store.load_newest(run_dir))
        capsys.readouterr()
        run_dir.read_status()
        provenance.read(run_dir.provenance)
        run_dir.read_guard()
        if run_dir.id.exists():
            run_dir.check_id()
        assert damaged_lines(run_dir.metrics) == []
        assert capsys.readouterr().err == ""
        moved = tmp_path / "metrics.jsonl.damaged-1"
        aside_bytes = moved.stat().st_size if moved.exists() else 0
        assert run_dir.metrics.stat().st_size + aside_bytes == len(mutate(whole[run_dir.metrics]))

    check_with(examples, check)
