"""`runner resume`: from the directory alone, with changes that keep the run what it is."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.config import provenance, store
from runner.config.run_dir import RunDir
from runner.config.run_lock import hold


@pytest.fixture
def run(runner: Callable[..., tuple[int, str, str]], project: Path) -> Any:
    runner("train", "tiny", "run.dir=run", "run.stop_at_step=3")
    (project / "run" / "checkpoints" / "step_8").mkdir(parents=True)  # the launcher of these tests trains nothing
    return project / "run"


def last(run: Path) -> store.StoredSpec:
    return store.load(max(run.glob("spec.attempt_*.yaml")))


def test_the_next_attempt_stands_beside_the_first(runner: Callable[..., tuple[int, str, str]], run: Any) -> None:
    before = (run / "spec.yaml").read_text()
    code, out, _ = runner("resume", "run", "run.steps=9", "strategy=ddp", "hardware.processes=2", "optimizer.lr=0.5")
    assert (code, out.splitlines()[-1]) == (0, str(run))
    assert (run / "spec.yaml").read_text() == before
    spec = store.read(run / "spec.attempt_2.yaml")
    assert (spec.run.steps, spec.batch.items, spec.batch.micro_items) == (9, 64, 32)
    assert last(run).config["strategy"]["_target_"] == "runner.strategy.ddp.DDP"
    assert last(run).source.choices["strategy"] == "ddp"
    attempts = json.loads((run / "provenance.json").read_text())
    assert not (run / ".reserve").exists()  # room is kept while an attempt is under way
    assert [attempt["run_id"] for attempt in attempts] == [(run / "run_id").read_text().strip()] * 2


def test_where_the_earlier_attempt_was_told_to_stop_the_next_goes_on(
    runner: Callable[..., tuple[int, str, str]], run: Any
) -> None:
    runner("resume", "run")
    assert last(run).config["run"]["stop_at_step"] is None
    runner("resume", "run", "run.stop_at_step=4")
    assert last(run).config["run"]["stop_at_step"] == 4


def test_a_chain_of_attempts_keeps_every_change(runner: Callable[..., tuple[int, str, str]], run: Any) -> None:
    runner("resume", "run", "tracker=[tensorboard]")
    runner("resume", "run", "run.steps=8")
    assert (list(last(run).config["tracker"]), last(run).config["run"]["steps"]) == (["tensorboard"], 8)


def test_what_would_make_it_another_run_is_refused_all_at_once(
    runner: Callable[..., tuple[int, str, str]], run: Any
) -> None:
    code, _, err = runner(
        "resume", "run", "model.width=5", "batch.items=32", "run.seed=1", "name=x", "data._target_=cli_hooks.loss"
    )
    assert code == 2
    assert "model.width: 4 would become 5, which makes it another run." in err
    assert "Keep it, or say that you mean it: --allow model.width" in err
    assert "batch.items: 64 items a step would become 32" in err
    assert "run.seed: 0 would become 1" in err
    assert "name: 'tiny' cannot become 'x': a run stays where it is" in err
    assert "data._target_: 'cli_hooks.load_data' would become 'cli_hooks.loss'" in err
    assert not list(run.glob("spec.attempt_*"))


def test_items_of_a_step_count_as_they_are_derived(runner: Callable[..., tuple[int, str, str]], run: Any) -> None:
    code, _, err = runner("resume", "run", "batch.items=null", "batch.micro_items=64", "batch.accumulate=2")
    assert code == 2
    assert "batch.items: 64 items a step would become 128" in err
    assert runner("resume", "run", "batch.items=null", "batch.micro_items=16", "batch.accumulate=4")[0] == 0


def test_what_is_allowed_may_change(runner: Callable[..., tuple[int, str, str]], run: Any) -> None:
    assert (
        runner("resume", "run", "model.width=5", "batch.items=32", "--allow", "model", "--allow", "batch.items")[0] == 0
    )
    assert (last(run).config["model"]["width"], last(run).config["batch"]["items"]) == (5, 32)


def test_faults_of_overrides_are_told_as_train_tells_them(
    runner: Callable[..., tuple[int, str, str]], run: Any
) -> None:
    code, _, err = runner("resume", "run", "strategy=dpp", "optimizr.lr=1", "run.steps=abc")
    assert code == 2
    assert "strategy: there is no option 'dpp'. Did you mean ddp?" in err
    assert "optimizr.lr: there is no such key. Did you mean optimizer.lr?" in err
    assert "run.steps: 'abc' must be a whole number" in err


def test_another_optimizer_starts_from_its_own_defaults(runner: Callable[..., tuple[int, str, str]], run: Any) -> None:
    assert runner("resume", "run", "optimizer._target_=torch.optim.RMSprop", "optimizer.lr=0.1")[0] == 0
    assert last(run).config["optimizer"] == {"_target_": "torch.optim.RMSprop", "lr": 0.1}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["recipes"], "DIR: recipes is not a run's directory: it has no spec.yaml"),
        (["nowhere"], "DIR: nowhere is not a directory"),
        ([], "DIR: must be given: runner resume DIR"),
        (
            ["run", "--from", "step_9"],
            "--from: there is no checkpoint 'step_9'. Did you mean step_8? There are: step_8",
        ),
    ],
)
def test_what_cannot_be_resumed_is_named(
    runner: Callable[..., tuple[int, str, str]], run: Any, argv: Any, words: str
) -> None:
    code, _, err = runner("resume", *argv)
    assert code == 2
    assert words in err


def test_a_hook_that_has_changed_is_a_warning(
    runner: Callable[..., tuple[int, str, str]], run: Any, project: Path
) -> None:
    assert "warning" not in runner("resume", "run")[2]
    (project / "cli_hooks.py").write_text((project / "cli_hooks.py").read_text() + "\n# changed\n")
    assert f"warning: {project / 'cli_hooks.py'} has changed since the last attempt" in runner("resume", "run")[2]


def test_an_attempt_that_cannot_be_written_down_leaves_no_spec(
    runner: Callable[..., tuple[int, str, str]], run: Any
) -> None:
    """Here provenance.json cannot be replaced, since it has become a directory."""
    (run / "provenance.json").unlink()
    (run / "provenance.json").mkdir()
    code, _, err = runner("resume", "run")
    assert code == 12
    assert err == f"directory: {run}\n{run / 'provenance.json'} cannot be read: Is a directory.\n"
    assert [path.name for path in run.glob("spec*")] == ["spec.yaml"]


@pytest.mark.parametrize("evidence", ["provenance", "directory", "no_provenance"])
def test_a_start_from_0_that_would_lose_a_checkpoint_is_refused(
    runner: Callable[..., tuple[int, str, str]], run: Any, evidence: str
) -> None:
    run_dir = RunDir(run)
    if evidence == "provenance":
        provenance.note_commit(run_dir.provenance, 3)
        words = "provenance.json says that step_3 was committed"
        (run_dir.checkpoints / "step_8").rmdir()
    elif evidence == "directory":
        words = "it was at step 5, and saved checkpoints"
        shutil.rmtree(run_dir.checkpoints)
    else:
        words = "it was at step 5, and provenance.json, which would say whether it committed one, is lost"
        (run_dir.checkpoints / "step_8").rmdir()
        run_dir.provenance.unlink()
    code, _, err = runner("resume", "run")
    assert code == 8
    said = f"the checkpoints of this run are gone: {words}, but there is none in {run_dir.checkpoints}."
    assert err.startswith(f"directory: {run}\n{said}")
    code, _, err = runner("resume", "run", "--from", "0")
    assert code == 0
    assert err == f"directory: {run}\nwarning: {run} starts from step 0: as --from 0 asks for.\n"


def test_a_run_that_committed_nothing_starts_from_0_and_says_so(
    runner: Callable[..., tuple[int, str, str]], run: Any
) -> None:
    (run / "checkpoints" / "step_8").rmdir()
    code, _, err = runner("resume", "run")
    said = f"warning: {run} starts from step 0: it has not committed a checkpoint yet."
    assert (code, err) == (0, f"directory: {run}\n{said}\n")


def test_an_attempt_notes_a_checkpoint_that_it_finds(runner: Callable[..., tuple[int, str, str]], run: Any) -> None:
    runner("resume", "run")
    assert provenance.committed(RunDir(run).provenance) == [8]


def test_a_run_in_use_is_refused_and_left_alone(runner: Callable[..., tuple[int, str, str]], run: Any) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != "run.lock"}
    with hold(RunDir(run)):
        code, _, err = runner("resume", "run")
    assert code == 9
    assert f"{run} is in use by process {os.getpid()} on " in err
    assert {name: (run / name).read_bytes() for name in before} == before
