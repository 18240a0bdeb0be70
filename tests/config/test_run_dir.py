"""Two launches never share a directory, and a reader never sees half a status."""

import multiprocessing
import re
from functools import partial
from pathlib import Path

import pytest

from runner.config.claim import claim, claim_named
from runner.config.run_dir import RunDir
from runner.errors import SpecError


def test_eight_launches_in_one_second_get_eight_directories(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        paths = pool.map(partial(claim, key="run.dir"), [tmp_path] * 8, chunksize=1)
    assert len(set(paths)) == 8
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-[0-9a-f]{4}", str(p.relative_to(tmp_path))) for p in paths)


def test_a_named_directory_is_claimed_once(tmp_path: Path) -> None:
    assert claim_named(tmp_path / "a" / "b", key="run.dir").is_dir()
    with pytest.raises(SpecError, match=r"run\.dir: .*a/b exists already\. Choose another .*runner resume"):
        claim_named(tmp_path / "a" / "b", key="run.dir")


def test_only_a_directory_with_a_spec_is_said_to_be_a_run(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"exists already\. Choose another directory: this one has no spec\.yaml, so"):
        claim_named(tmp_path, key="run.dir")
    RunDir(tmp_path).spec.touch()
    with pytest.raises(SpecError, match=f"or continue that run: runner resume {tmp_path}"):
        claim_named(tmp_path, key="run.dir")


def test_attempts_are_counted_beyond_nine(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    for _ in range(11):
        run_dir.next_spec().touch()
    assert [path.name for path in run_dir.specs()][-2:] == ["spec.attempt_10.yaml", "spec.attempt_11.yaml"]


def test_a_status_comes_back_as_written(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert run_dir.read_status()["step"] == 0
    run_dir.write_status("done", step=3, metrics={"train/loss": 0.1})
    assert run_dir.read_status() == {"state": "done", "step": 3, "metrics": {"train/loss": 0.1}}


def test_a_spec_that_was_set_aside_is_counted_but_not_read(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    for name in ("spec.yaml", "spec.attempt_2.yaml.damaged-1", "spec.attempt_x.yaml", "spec.yaml.partial-1"):
        (tmp_path / name).touch()
    assert run_dir.specs() == [run_dir.spec]
    assert run_dir.next_spec().name == "spec.attempt_3.yaml"
