"""What a person sees of a corrupted checkpoint: one screen with the file and a way out that works, and no traceback."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.config.run_dir import RunDir
from tests.conftest import Ended
from tests.storage.forging import plant

SCREEN = 24  # lines


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def payload(run_dir: RunDir, step: int) -> Path:
    return run_dir.checkpoints / f"step_{step}" / "rank_0.safetensors"


@pytest.fixture(params=[1, 2], ids=["one rank", "two ranks"])
def stopped(request: pytest.FixtureRequest, runner: Callable[..., Ended]) -> RunDir:
    """A run with checkpoints of steps 2, 4 and 5 of ten."""
    ranks = [] if request.param == 1 else ["strategy=ddp", f"hardware.processes={request.param}"]
    kept = ("checkpoint.every_steps=2", "checkpoint.keep_last=9", "run.stop_at_step=5")
    return runner("train", "points", *kept, *ranks).run_dir


@pytest.mark.fault(
    "the newest checkpoint is corrupt",
    "one screen names the file; the older checkpoint that it advises was read to its last byte, and works",
)
def test_one_screen_without_a_traceback_and_its_advice_works(stopped: RunDir, runner: Callable[..., Ended]) -> None:
    flip(payload(stopped, 5), -1)
    flip(payload(stopped, 4), -1)  # its size is right: only reading all of it can tell
    said = runner("resume", str(stopped.path), code=8).stderr
    assert "Traceback" not in said
    assert len(said.splitlines()) <= SCREEN, said
    assert re.search(rf"CheckpointError: {payload(stopped, 5)} is corrupted: tensor '.*' does not match its hash", said)
    assert "An older checkpoint is intact; continue from it: --from step_2." in said
    assert said.rstrip().endswith(f"To continue from that one: runner resume {stopped.path} --from step_2")
    assert "Traceback" in json.loads(report(said).read_text())["traceback"]
    runner("resume", str(stopped.path), "--from", "step_2")
    assert stopped.read_status()["state"] == "done"


def report(said: str) -> Path:
    """The file that has the traceback."""
    found = re.search(r"^traceback: (.*)$", said, re.MULTILINE)
    assert found, said
    return Path(found[1])


@pytest.mark.fault("every checkpoint is corrupt", "no resume is advised")
def test_if_none_is_intact_a_resume_is_not_advised(stopped: RunDir, runner: Callable[..., Ended]) -> None:
    for step in (2, 4, 5):
        flip(payload(stopped, step), -1)
    said = runner("resume", str(stopped.path), code=8).stderr
    assert "No older checkpoint is intact: start a new run." in said
    assert "runner resume" not in said
    assert len(said.splitlines()) <= SCREEN, said


def test_a_state_that_no_part_can_take_is_told(runner: Callable[..., Ended]) -> None:
    """Whole and with matching hashes, but not what this version writes."""
    run_dir = runner("train", "points", "run.stop_at_step=3").run_dir
    checkpoint = run_dir.checkpoints / "step_3"
    stored = json.loads((checkpoint / "state.json").read_text())
    cases = {
        "progress": ("step", "three"),
        "source": ("source", {"position": -1}),
        "model and optimizer": ("optimizer", 7),
    }
    for what, (key, value) in cases.items():
        forged = stored | {"values": stored["values"] | {key: value}}
        plant(checkpoint, "state.json", json.dumps(forged).encode())
        said = runner("resume", str(run_dir.path), code=8).stderr
        assert f"{checkpoint}: the state of {what} cannot be restored: " in said
        assert "Traceback" not in said
