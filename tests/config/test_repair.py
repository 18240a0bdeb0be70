"""Damaged files of a run's directory are named, set aside, and rebuilt from what is whole."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.config import provenance, store
from runner.config.repair import repair
from runner.config.run_dir import RunDir
from runner.config.run_lock import check_free, hold
from runner.config.store import Composition, StoredSpec
from runner.errors import LaunchError, RunnerError

GARBAGE: dict[str, bytes] = {
    "empty": b"",
    "zeros": b"\0" * 64,
    "torn": b'{"state": "runn',
    "not_utf8": b'{"state": "\xff\xfe"}',
    "number": b"7\n",
    "null": b"null\n",
    "list": b"[1, 2]\n",
    "types": b'{"state": 3, "step": "many", "metrics": [], "format": []}\n',
    "deep": b"[" * 100_000,
    "digits": b'{"state": "done", "step": ' + b"9" * 5_000 + b', "metrics": {}}',
}
DAMAGE = pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)


def stored(**config: Any) -> StoredSpec:
    return StoredSpec(config=config, import_roots=["/here"], source=Composition(recipe="r.yaml"))


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """The directory of two attempts, whole, at step 4 with a checkpoint of step 3."""
    run_dir = RunDir(tmp_path)
    for attempt in (1, 2):
        store.save(run_dir.next_spec(), stored(name="toy", attempt=attempt))
        provenance.record(run_dir.provenance, {"time": "now", "run_id": run_dir.read_id()})
    (run_dir.checkpoints / "step_3").mkdir(parents=True)
    lines = [{"step": step, "time_s": 1.0, "train/loss": 1 / step} for step in (1, 2, 3, 4)]
    run_dir.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_dir.write_running()
    run_dir.note_guard(2, [{"rank": 0}])
    return run_dir


@pytest.fixture
def mended(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Put garbage in place of a file, repair, and return what was said, which is one line with both names."""

    def mend(path: Path, garbage: bytes) -> str:
        path.write_bytes(garbage)
        repair(run_dir)
        (said,) = capsys.readouterr().err.splitlines()
        assert f"warning: {path}" in said
        assert f"{path.name}.damaged-1" in said
        assert path.with_name(f"{path.name}.damaged-1").read_bytes() == garbage
        return said

    return mend


def test_nothing_is_said_of_a_directory_that_is_whole(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run_dir.path.iterdir() if path.is_file()}
    repair(run_dir)
    assert {path: path.read_bytes() for path in run_dir.path.iterdir() if path.is_file()} == before
    assert capsys.readouterr().err == ""


@DAMAGE
def test_the_status_comes_from_records_and_checkpoints(
    run_dir: RunDir, mended: Callable[..., str], garbage: bytes
) -> None:
    assert "step 4 is the last in the other files" in mended(run_dir.status, garbage)
    assert json.loads(run_dir.status.read_text()) == {"state": "failed", "step": 4, "metrics": {"train/loss": 0.25}}


def test_the_status_is_never_older_than_the_newest_checkpoint(run_dir: RunDir, mended: Callable[..., str]) -> None:
    (run_dir.checkpoints / "step_10").mkdir()
    mended(run_dir.status, b"")
    assert run_dir.read_status()["step"] == 10


@DAMAGE
def test_a_damaged_status_can_be_read_without_mending_it(
    run_dir: RunDir, garbage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir.status.write_bytes(garbage)
    assert run_dir.read_status()["step"] == 4
    assert f"{run_dir.status} is damaged" in capsys.readouterr().err
    assert run_dir.status.read_bytes() == garbage


@DAMAGE
def test_provenance_begins_again(run_dir: RunDir, mended: Callable[..., str], garbage: bytes) -> None:
    mended(run_dir.provenance, garbage)
    provenance.record(run_dir.provenance, {"time": "later"})
    assert provenance.read(run_dir.provenance) == [{"time": "later"}]


@DAMAGE
def test_the_id_comes_back_from_provenance(run_dir: RunDir, mended: Callable[..., str], garbage: bytes) -> None:
    before = run_dir.read_id()
    assert "provenance.json has the same id" in mended(run_dir.id, garbage)
    assert run_dir.read_id() == before


def test_without_provenance_the_id_is_a_new_one_and_that_is_said(run_dir: RunDir, mended: Callable[..., str]) -> None:
    before = run_dir.read_id()
    run_dir.provenance.unlink()
    assert "trackers will show the next attempt as a run of its own" in mended(run_dir.id, b"")
    assert run_dir.read_id() != before


def test_the_guards_list_begins_again(run_dir: RunDir, mended: Callable[..., str]) -> None:
    mended(run_dir.guard, b'[{"step": ')
    run_dir.note_guard(9, [])
    assert run_dir.read_guard() == [{"step": 9, "found": []}]


def test_a_guard_that_is_damaged_while_the_run_goes_on_does_not_end_it(run_dir: RunDir) -> None:
    run_dir.guard.write_bytes(b"")
    run_dir.note_guard(9, [])
    assert run_dir.read_guard() == [{"step": 9, "found": []}]
    assert run_dir.guard.with_name("guard.json.damaged-1").exists()


@DAMAGE
def test_the_newest_whole_spec_takes_the_place_of_a_damaged_one(
    run_dir: RunDir, mended: Callable[..., str], garbage: bytes
) -> None:
    newest = run_dir.specs()[-1]
    assert newest.name == "spec.attempt_2.yaml"
    assert "the run continues with spec.yaml" in mended(newest, garbage)
    assert store.load_newest(run_dir)[1].config == {"name": "toy", "attempt": 1}
    assert run_dir.next_spec().name == "spec.attempt_3.yaml"  # no second file of one name


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config": None}, "its config is not a mapping"),
        ({"config": {1: 2}}, "its config is not a mapping"),
        ({"import_roots": "x"}, "its import_roots are not a list"),
        ({"import_roots": [1]}, "its import_roots are not a list"),
        ({"source": None}, "its source is incomplete"),
        ({"source": {"recipe": "r", "more": 1}}, "its source is incomplete"),
        (
            {"source": {"recipe": 1, "overrides": [], "choices": {}, "search_path": []}},
            "its source has values of other types",
        ),
    ],
)
def test_a_spec_with_other_types_is_damaged(run_dir: RunDir, change: dict[str, Any], reason: str) -> None:
    newest = run_dir.specs()[-1]
    page = store.load_yaml(newest.read_text()) | change
    newest.write_text(store.dump_yaml(page))
    with pytest.raises(RunnerError, match=reason):
        store.load(newest)


def test_a_damaged_spec_can_be_passed_over_without_mending_it(
    run_dir: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir.specs()[-1].write_bytes(b"")
    path, found = store.load_newest(run_dir)
    assert (path, found.config["attempt"]) == (run_dir.spec, 1)
    assert "spec.attempt_2.yaml is damaged: it is empty. spec.yaml takes its place" in capsys.readouterr().err


def test_a_run_without_a_whole_spec_is_one_error_and_keeps_its_files(run_dir: RunDir) -> None:
    specs = run_dir.specs()
    for path in specs:
        path.write_bytes(b"\0")
    repair(run_dir)
    assert run_dir.specs() == specs
    with pytest.raises(RunnerError) as failed:
        store.load_newest(run_dir)
    assert str(failed.value).startswith(f"{run_dir.path} has no spec file that is whole:\n")
    assert all(f"{path} is damaged: it is empty." in str(failed.value) for path in specs)
    assert "put a whole copy in place of one of these files, or train anew" in str(failed.value)


def test_a_spec_of_another_version_is_not_passed_over(run_dir: RunDir) -> None:
    run_dir.specs()[-1].write_text("format: 3\nconfig: {}\n")
    with pytest.raises(RunnerError, match=r"its format is 3, and this version reads 2\. Use the version that wrote"):
        store.load_newest(run_dir)


def test_damaged_lines_are_moved_and_those_around_them_kept(
    run_dir: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *rest = run_dir.metrics.read_bytes().splitlines(keepends=True)
    run_dir.metrics.write_bytes(b"".join([first, b"\xff\x00garbage\n", second, b"{}\n", *rest]))
    repair(run_dir)
    assert run_dir.metrics.read_bytes() == b"".join([first, second, *rest])
    assert run_dir.metrics.with_name("metrics.jsonl.damaged-1").read_bytes() == b"\xff\x00garbage\n{}\n"
    said = "2 damaged lines are moved to metrics.jsonl.damaged-1; those around them are kept."
    assert capsys.readouterr().err == f"warning: {run_dir.metrics}: {said}\n"
    assert not list(run_dir.path.glob("*.partial-*"))


def test_every_damaged_file_gets_a_name_of_its_own(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (b"1", b"2"):
        run_dir.status.write_bytes(content)
        repair(run_dir)
    assert [run_dir.path.joinpath(f"status.json.damaged-{n}").read_bytes() for n in (1, 2)] == [b"1", b"2"]


def test_what_a_killed_attempt_was_about_to_rename_is_removed_by_the_next_one(run_dir: RunDir) -> None:
    checkpoint = run_dir.checkpoints / "step_3"
    run_dir.failures.mkdir()
    for path in (run_dir.status, run_dir.reserve, run_dir.failures / "1_rank_0.json", checkpoint / "manifest.json"):
        path.with_name(f"{path.name}.partial-0123abcd").touch()
    mine = run_dir.path / "notes.partial-view"
    mine.touch()
    check_free(run_dir)
    assert list(run_dir.path.rglob("*.partial-*")) == [mine]


def test_nothing_is_removed_while_another_attempt_is_under_way(run_dir: RunDir) -> None:
    partial = run_dir.path / "status.json.partial-0123abcd"
    with hold(run_dir):
        partial.touch()
        with pytest.raises(LaunchError, match="is in use by process"), hold(run_dir, patience_s=0):
            pass
        assert partial.exists()
