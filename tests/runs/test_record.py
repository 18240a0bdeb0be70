"""A run's directory is read as data: nothing that it names is imported, and nothing in it changes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runner.runs.record import RunRecord
from tests.conftest import CHECKOUT

SPEC = """\
format: 1
config: {name: planted, model: {_target_: planted_hooks.build}, strategy: {_target_: planted_hooks.Strategy}}
import_roots: [%s]
source: {recipe: planted.yaml, overrides: [a=1], choices: {strategy: planted}, search_path: []}
"""
FAILURE = {"rank": 1, "time_ns": 5, "monotonic_ns": 5, "start": 7, "step": 3} | dict.fromkeys(
    ("error", "message", "traceback"), "sad"
)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A run that nobody trained, whose hooks leave a trace if they are imported."""
    (tmp_path / "planted_hooks.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\n")
    run = tmp_path / "run"
    (run / "failures").mkdir(parents=True)
    (run / "spec.yaml").write_text(SPEC % tmp_path)
    (run / "status.json").write_text('{"state": "preempted", "step": 4, "metrics": {"train/loss": 0.5}}')
    (run / "failures" / "5_rank_1.json").write_text(json.dumps(FAILURE))
    (run / "metrics.jsonl").write_text(
        '{"step": 2, "time_s": 0.5, "train/loss": 1.5}\n'
        '{"step": 3, "time_s": 0.75, "eval/loss": null}\n'
        "what a disk left\n"
        '{"step": 4, "time_s": 1.0, "train/loss": 0.5, "eval/loss": 2}\n'
        '{"step": 5, "time_s": 1.25, "train'
    )
    return run


def test_metrics_are_columns_and_what_is_missing_is_none(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert RunRecord(planted).metrics == {
        "step": [2, 3, 4],
        "time_s": [0.5, 0.75, 1.0],
        "train/loss": [1.5, None, 0.5],
        "eval/loss": [None, None, 2],
    }
    assert f"warning: {planted / 'metrics.jsonl'}: 1 damaged lines are left out." in capsys.readouterr().err


def test_a_run_without_files_is_empty(tmp_path: Path) -> None:
    run = RunRecord(tmp_path)
    assert (run.status.state, run.outcome, run.metrics, run.checkpoints, run.failures) == ("queued", None, {}, [], [])


def test_a_checkpoint_whose_manifest_is_damaged_is_told(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (planted / "checkpoints" / "step_4").mkdir(parents=True)
    (planted / "checkpoints" / "step_4" / "manifest.json").write_text("{}")
    assert RunRecord(planted).checkpoints == []
    assert "warning: " in (said := capsys.readouterr().err)
    assert "step_4/manifest.json is corrupted" in said


def test_reading_runs_no_code_and_changes_no_file(planted: Path) -> None:
    """In a process of its own, which neither torch nor Hydra is imported into."""
    before = {path: path.read_bytes() for path in planted.rglob("*") if path.is_file()}
    program = (
        "import sys; from runner import load_run; run = load_run(sys.argv[1]);"
        "print(run.status, run.outcome, run.metrics, run.config, run.source, run.checkpoints);"
        "print(run.failures, run.attempts);"
        "print(sorted({'torch', 'hydra', 'omegaconf'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, planted], cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "state='preempted'" in done.stdout
    assert "planted_hooks.build" in done.stdout
    assert "rank=1" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
    assert not (planted.parent / "trace").exists()
    assert {path: path.read_bytes() for path in planted.rglob("*") if path.is_file()} == before
