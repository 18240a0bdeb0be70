"""The layout of a run's directory: the one place that knows its names. Other tools may read what stands here."""

import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import durable
from runner.config.damage import Damaged, list_of_objects, read_json, read_text, set_aside, warn
from runner.config.records import last_values
from runner.errors import DiskError
from runner.protocols.state import MODEL

RUNNING = "running"
STATES = ("queued", RUNNING, "done", "failed", "preempted")
COMMITTED = re.compile(r"step_([0-9]+)")
"""The name of a committed checkpoint."""
SPEC = re.compile(r"spec(?:\.attempt_(\d+))?\.yaml(\.damaged-\d+)?")
ID = re.compile(r"[0-9a-f]{16}")
RESERVED_BYTES = 256 << 10
"""Room for a last status and the reports of some 30 failing ranks."""


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

    def model_config(self, model: str) -> Path:
        """A transformers model's own configuration, of which an export makes config.json: see storage/pretrained.py."""
        return self.path / ("model_config.json" if model == MODEL else f"model_config.{model}.json")

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

    @property
    def lock(self) -> Path:
        """Who runs the run at the moment; see runner/config/run_lock.py."""
        return self.path / "run.lock"

    @property
    def reserve(self) -> Path:
        """Room that is kept for what must be written on a full disk; see `write_last`."""
        return self.path / ".reserve"

    def rank_log(self, rank: int) -> Path:
        """The log of one rank."""
        return self.logs / f"rank_{rank}.log"

    def specs(self) -> list[Path]:
        """The declaration of every attempt, oldest first; without those that were set aside."""
        return [path for _, path in self._numbered_specs() if path.suffix == ".yaml"]

    def next_spec(self) -> Path:
        """Where the next attempt's declaration goes."""
        numbers = [number for number, _ in self._numbered_specs()]
        return self.path / f"spec.attempt_{max(numbers) + 1}.yaml" if numbers else self.spec

    def _numbered_specs(self) -> list[tuple[int, Path]]:
        matches = [(SPEC.fullmatch(path.name), path) for path in self.path.glob("spec.*")]
        return sorted((int(match[1] or 1), path) for match, path in matches if match)

    def committed_steps(self) -> list[int]:
        """The steps of the committed checkpoints, by their names, in ascending order."""
        matches = [COMMITTED.fullmatch(path.name) for path in self.checkpoints.glob("step_*")]
        return sorted(int(match[1]) for match in matches if match)

    def write_running(self) -> None:
        """Say in status.json that the run is under way; how far it is, its other files tell.

        Raises:
            DiskError: the file system reported an error.
        """
        try:
            durable.replace(self.status, json.dumps({"state": RUNNING}) + "\n")
        except OSError as error:
            raise durable.write_error(self.status, error) from error

    def write_status(self, state: str, *, step: int, metrics: Mapping[str, float]) -> None:
        """Replace status.json in one rename, so that a reader never sees half of it. Several machines may at once.

        What a run ends with is written even on a full disk.

        Raises:
            OSError: the file system reported an error.
        """
        assert state in {*STATES} - {RUNNING}, state
        content = json.dumps({"state": state, "step": step, "metrics": dict(metrics)}) + "\n"
        if state == "queued":
            durable.replace(self.status, content)
        else:
            self.write_last(self.status, content)

    def write_state(self, state: str) -> None:
        """Replace the state in status.json; step and metrics stay as they are.

        Raises:
            DiskError, OSError: as `read_status` and `write_status`.
        """
        status = self.read_status()
        self.write_status(state, step=status["step"], metrics=status["metrics"])

    def read_status(self) -> dict[str, Any]:
        """What status.json says; before an attempt wrote it, a run is queued at step 0.

        Of a run that is under way, step and metrics are those of metrics.jsonl and the names of the checkpoints.

        If the file is damaged, that is said on stderr, and the answer is made from metrics.jsonl and the names of the
        committed checkpoints; the run then counts as failed.

        Raises:
            DiskError: the file system does not let it be read.
        """
        try:
            status = read_json(self.status, status_fields)
        except FileNotFoundError:
            return {"state": "queued", "step": 0, "metrics": {}}
        except Damaged as damaged:
            warn(f"{damaged} Step and metrics are those of {self.metrics.name} and {self.checkpoints.name}/.")
            return self.recorded_status()
        return self.recorded_status() | status if status["state"] == RUNNING else status

    def last_step(self) -> int:
        """The step that the run is at, for messages; 0 if the file system does not let it be read."""
        try:
            return int(self.read_status()["step"])
        except (OSError, DiskError):  # the error to report is another one
            return 0

    def recorded_status(self) -> dict[str, Any]:
        """What metrics.jsonl and the names of the committed checkpoints tell about the run, as a failed one."""
        recorded, metrics = last_values(self.metrics)
        return {"state": "failed", "step": max(recorded, *self.committed_steps(), 0), "metrics": metrics}

    def read_id(self) -> str:
        """16 hexadecimal digits, the same for all attempts of the run: trackers know the run by them."""
        try:
            return self.check_id()
        except FileNotFoundError:
            self.write_id(secrets.token_hex(8))
        return self.check_id()

    def check_id(self) -> str:
        """The run's id.

        Raises:
            FileNotFoundError: it has none yet.
            Damaged: run_id holds something else.
        """
        found = read_text(self.id).strip()
        if not ID.fullmatch(found):
            raise Damaged(self.id, "it does not hold 16 hexadecimal digits")
        return found

    def write_id(self, run_id: str) -> None:
        """Write run_id."""
        durable.replace(self.id, run_id + "\n")

    def read_guard(self) -> list[dict[str, Any]]:
        """The steps in guard.json.

        Raises:
            Damaged: it holds something else.
        """
        try:
            return read_json(self.guard, list_of_objects)
        except FileNotFoundError:
            return []

    def note_guard(self, step: int, found: list[dict[str, Any]]) -> None:
        """Add a step to guard.json, in one rename. If the file is damaged, it is set aside and begun again."""
        try:
            events = self.read_guard()
        except Damaged as damaged:
            warn(f"{damaged} It is set aside as {set_aside(self.guard).name}.")
            events = []
        durable.replace(self.guard, json.dumps([*events, {"step": step, "found": found}], indent=1) + "\n")

    def keep_reserve(self) -> None:
        """Take room on the disk for `write_last`. Random bytes, which no file system can make smaller."""
        if not self.reserve.exists():
            durable.replace(self.reserve, os.urandom(RESERVED_BYTES))

    def write_last(self, path: Path, content: str) -> None:
        """Write a file in the run's directory that tells how an attempt ended, even on a full disk.

        Raises:
            OSError: the file system reported an error, and the room that was kept did not help.
        """
        try:
            path.parent.mkdir(exist_ok=True)
            durable.replace(path, content)
        except OSError as error:
            if error.errno not in durable.FULL:
                raise
            self.reserve.unlink(missing_ok=True)
            path.parent.mkdir(exist_ok=True)
            durable.replace(path, content)


def status_fields(value: Any) -> dict[str, Any]:
    """The fields of status.json, to which others may have been added.

    Raises:
        ValueError, KeyError: it holds something else.
    """
    if not isinstance(value, dict):
        raise ValueError("it does not hold an object")
    if value == {"state": RUNNING}:
        return {"state": RUNNING}
    state, step, metrics = value["state"], value["step"], value["metrics"]
    if state not in STATES or type(step) is not int or step < 0 or not isinstance(metrics, dict):
        raise ValueError("it does not hold a state, a step and metrics")
    if not all(isinstance(metric, int | float) for metric in metrics.values()):
        raise ValueError("a metric in it is not a number")
    return {"state": state, "step": step, "metrics": metrics}
