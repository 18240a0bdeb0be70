"""The layout of a run's directory: the one place that knows its names. Other tools may read what stands here."""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import durable
from runner.errors import Fault, SpecError

STATES = ("queued", "running", "done", "failed", "preempted")


@dataclass(frozen=True)
class RunDir:
    """Paths inside one run's directory."""

    path: Path

    @property
    def spec(self) -> Path:
        """The declaration of the first attempt."""
        return self.path / "spec.yaml"

    @property
    def status(self) -> Path:
        """{"state": queued | running | done | failed | preempted, "step": int, "metrics": {name: float}}."""
        return self.path / "status.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: step, time_s, and names such as train/loss."""
        return self.path / "metrics.jsonl"

    @property
    def provenance(self) -> Path:
        """Versions, platform, git state and command line of every attempt."""
        return self.path / "provenance.json"

    @property
    def logs(self) -> Path:
        """One file a rank."""
        return self.path / "logs"

    @property
    def failures(self) -> Path:
        """What each failed rank left behind, one JSON file each."""
        return self.path / "failures"

    @property
    def model_config(self) -> Path:
        """A transformers model's own configuration, of which an export makes config.json: see storage/pretrained.py."""
        return self.path / "model_config.json"

    @property
    def guard(self) -> Path:
        """Steps that were not finite and where that came from: a list, oldest first. Not there as long as none was."""
        return self.path / "guard.json"

    @property
    def id(self) -> Path:
        """The run's id, made by its first attempt; see `read_id`."""
        return self.path / "run_id"

    @property
    def checkpoints(self) -> Path:
        """Committed checkpoints, step_<n> each."""
        return self.path / "checkpoints"

    def rank_log(self, rank: int) -> Path:
        """The log of one rank."""
        return self.logs / f"rank_{rank}.log"

    def specs(self) -> list[Path]:
        """The declaration of every attempt, oldest first."""
        resumed = sorted(
            self.path.glob("spec.attempt_*.yaml"),
            key=lambda path: int(path.stem.rpartition("_")[2]),
        )
        return [path for path in (self.spec, *resumed) if path.exists()]

    def next_spec(self) -> Path:
        """Where the next attempt's declaration goes."""
        done = len(self.specs())
        return self.path / f"spec.attempt_{done + 1}.yaml" if done else self.spec

    def write_status(self, state: str, *, step: int, metrics: Mapping[str, float]) -> None:
        """Replace status.json in one rename, so that a reader never sees half of it. Several machines may at once."""
        assert state in STATES, state
        durable.replace(self.status, json.dumps({"state": state, "step": step, "metrics": dict(metrics)}) + "\n")

    def read_id(self) -> str:
        """16 hexadecimal digits, the same for all attempts of the run: trackers know the run by them. Rank 0 only."""
        if not self.id.exists():
            durable.replace(self.id, secrets.token_hex(8) + "\n")
        return self.id.read_text().strip()

    def write_state(self, state: str) -> None:
        """Replace the state in status.json; step and metrics stay as they are."""
        status = self.read_status()
        self.write_status(state, step=status["step"], metrics=status["metrics"])

    def note_guard(self, step: int, found: list[dict[str, Any]]) -> None:
        """Add a step to guard.json, in one rename."""
        events = json.loads(self.guard.read_text()) if self.guard.exists() else []
        durable.replace(self.guard, json.dumps([*events, {"step": step, "found": found}], indent=1) + "\n")

    def read_status(self) -> dict[str, Any]:
        """What status.json says; before an attempt wrote it, a run is queued at step 0."""
        if not self.status.exists():
            return {"state": "queued", "step": 0, "metrics": {}}
        status: dict[str, Any] = json.loads(self.status.read_text())
        return status


def claim(base: Path) -> Path:
    """Make <base>/<date>/<time>-<id>: a directory that no other launch has, not even one in the same second.

    The id is random and the last mkdir exclusive (hydra #1607: eight launches in one second shared one directory).
    """
    while True:
        path = base / time.strftime("%Y-%m-%d") / f"{time.strftime('%H-%M-%S')}-{secrets.token_hex(2)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path


def claim_named(path: Path, *, key: str) -> Path:
    """Make the directory that the user named; it must not be there yet.

    Raises:
        SpecError: it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        rule = f"{path} exists already. Choose another directory, or continue that run: runner resume {path}"
        raise SpecError(Fault(key=key, message=rule)) from None
    return path
