"""Weights & Biases with the library itself: what it wrote in offline mode is read back from its own files."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.errors import RunnerError
from runner.protocols import Image, Outcome, RunInfo, Table
from runner.tracker.wandb import Mode, WandB
from tests.conftest import Ended

BLOCK = 32768  # a .wandb file is LevelDB's log format: blocks of records, each with checksum, length and kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
KEY = "0123456789abcdef" * 2 + "01234567"
CONFIG = {"batch": {"items": 12}, "tracker": {"wandb": {"tags": ["a", "b"]}}}
QUIET = {"system_metrics": False}


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login, no settings of the person who runs the tests, and nothing sent to anybody."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def info(run_dir: Path, *, step: int = 0) -> RunInfo:
    run_dir.mkdir(exist_ok=True)
    return RunInfo(run_dir=run_dir, run_id="0123456789abcdef", name="points", config=CONFIG, step=step)


def payloads(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file."""
    data, at, parts = file.read_bytes(), 7, []  # after a header of seven bytes, :W&B and a version
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []


def records(run_dir: Path) -> list[Any]:
    """What all attempts wrote, oldest first."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made at import

    files = sorted(run_dir.glob("wandb/*run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    return [Record.FromString(payload) for file in files for payload in payloads(file)]


def history(run_dir: Path) -> list[dict[str, Any]]:
    """The rows; of W&B's own columns only the step."""
    return [row_of(one) for one in of_kind(run_dir, "history")]


def row_of(one: Any) -> dict[str, Any]:
    """A row; what is nested (media) as a dict."""
    row: dict[str, Any] = {}
    for item in one.item:
        *outer, last = item.nested_key or [item.key]
        inner = row
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)
    return {"step": row["_step"], **{key: value for key, value in row.items() if key[0] != "_"}}


def of_kind(run_dir: Path, kind: str) -> list[Any]:
    return [getattr(record, kind) for record in records(run_dir) if record.WhichOneof("record_type") == kind]


def test_offline_it_writes_what_it_is_told(tmp_path: Path) -> None:
    part = WandB(
        mode=Mode.offline, project="p", entity="e", group="g", job_type="train", run_name="n", tags=["a"], notes="why"
    )
    log = part.open(info(tmp_path / "run"))
    log.log({"time_s": 0.5, "train/loss": 0.25}, step=10)
    log.log({"time_s": 0.75, "eval/loss": 0.5}, step=10)
    log.log({"time_s": 1.0, "train/loss": float("nan")}, step=20)
    log.close(Outcome.DONE)
    (run,) = of_kind(tmp_path / "run", "run")
    assert (run.run_id, run.project, run.entity, run.run_group) == ("0123456789abcdef", "p", "e", "g")
    assert (run.job_type, run.display_name, list(run.tags), run.notes) == ("train", "n", ["a"], "why")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {key: value for key, value in config.items() if key != "_wandb"} == CONFIG
    first, second = history(tmp_path / "run")
    assert first == {"step": 10, "time_s": 0.75, "train/loss": 0.25, "eval/loss": 0.5}
    assert (second["step"], str(second["train/loss"]).lower()) == (20, "nan")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"wandb"}
    assert not list((tmp_path / "run").glob("wandb/*/files/output.log")), "the console is not captured"
    assert not list((tmp_path / "run").glob("wandb/*/files/**/*.py")), "no code is saved"


@pytest.mark.parametrize(
    ("outcome", "code", "preempting"), [(Outcome.DONE, 0, 0), (Outcome.FAILED, 1, 0), (Outcome.PREEMPTED, 1, 1)]
)
def test_it_says_how_the_run_ended(tmp_path: Path, outcome: Outcome, code: int, preempting: int) -> None:
    log = WandB(mode=Mode.offline, **QUIET).open(info(tmp_path / "run"))
    log.close(outcome)
    (ended,) = of_kind(tmp_path / "run", "exit")
    assert ended.exit_code == code
    assert len(of_kind(tmp_path / "run", "preempting")) == preempting


def test_media_and_artifacts_are_kept(tmp_path: Path) -> None:
    log = WandB(mode=Mode.offline, **QUIET).open(info(tmp_path / "run"))
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"weights")
    log.log_images({"digits": Image(pixels=np.zeros((4, 5), dtype=np.uint8), caption="black")}, step=3)
    log.log_tables({"wrong": Table(columns=["is", "taken for"], rows=[[3, "8"], [None, "1"]])}, step=3)
    log.log_text({"sample": "a < b"}, step=3)
    log.log_artifact(weights, name="weights", kind="model", step=3)
    log.close(Outcome.DONE)
    (row,) = history(tmp_path / "run")
    files = next((tmp_path / "run").glob("wandb/offline-run-*/files"))
    assert row["step"] == 3
    assert (row["digits"]["_type"], row["digits"]["caption"]) == ("image-file", "black")
    assert (row["digits"]["width"], row["digits"]["height"]) == (5, 4)
    assert (files / row["digits"]["path"]).read_bytes().startswith(b"\x89PNG")
    table = json.loads((files / row["wrong"]["path"]).read_text())
    assert (table["columns"], table["data"]) == (["is", "taken for"], [[3, "8"], [None, "1"]])
    assert "<pre>a &lt; b</pre>" in (files / row["sample"]["path"]).read_text()
    artifact = next(one for one in of_kind(tmp_path / "run", "artifact") if one.type == "model")
    assert (artifact.name, artifact.type) == ("weights", "model")


def test_all_attempts_are_one_run(runner: Callable[..., Ended], project: Path) -> None:
    offline = ["tracker=[wandb]", "tracker.wandb.mode=offline", "tracker.wandb.system_metrics=false"]
    stopped = runner("train", "points", *offline, "run.steps=4", "run.stop_at_step=2")
    resumed = runner("resume", str(stopped.run_dir.path))
    path = resumed.run_dir.path
    runs = of_kind(path, "run")
    assert {run.run_id for run in runs} == {(path / "run_id").read_text().strip()}
    assert len(runs) >= 2
    assert {run.project for run in runs} == {"points"}
    assert {run.display_name for run in runs} == {path.name}
    ours = [{key: value for key, value in row.items() if key != "time_s"} for row in history(path)]
    last, evaluation = resumed.metrics()[-2:]
    expected = [*resumed.metrics()[:-2], last | evaluation]
    assert ours == expected
    assert [one.exit_code for one in of_kind(path, "exit")] == [0, 0]


def test_a_hook_that_fails_is_a_failed_run_in_another_process_too(runner: Callable[..., Ended]) -> None:
    offline = ["tracker=[wandb]", "tracker.wandb.mode=offline", "strategy=ddp", "hardware.processes=2"]
    ended = runner("train", "points", *offline, "loss._target_=user_hooks.points.failing_loss", code=1)
    assert [one.exit_code for one in of_kind(ended.run_dir.path, "exit")] == [1]


def test_disabled_it_writes_nothing(tmp_path: Path) -> None:
    log = WandB(mode=Mode.disabled).open(info(tmp_path / "run"))
    log.log({"time_s": 1.0}, step=1)
    log.log_tables({"t": Table(columns=["a"], rows=[[1]])}, step=1)
    log.close(Outcome.DONE)
    assert list((tmp_path / "run").iterdir()) == []


def closed_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def test_a_dead_server_never_stops_training(runner: Callable[..., Ended], project: Path) -> None:
    server = f"http://127.0.0.1:{closed_port()}"
    dead = ["tracker=[wandb]", f"tracker.wandb.base_url={server}", "tracker.wandb.init_timeout_s=2"]
    environment = {"WANDB_API_KEY": KEY, "HOME": str(project), "WANDB_ERROR_REPORTING": "false"}
    ended = runner("train", "points", *dead, "run.steps=2", env=environment)
    log = ended.run_dir.rank_log(0).read_text()
    assert "the server did not answer within 2 s, so this attempt is recorded offline" in log
    (folder,) = ended.run_dir.path.glob("wandb/offline-run-*")
    assert f"wandb sync {folder}" in log
    assert [row["step"] for row in history(ended.run_dir.path)] == [1, 2]
    for path in ended.run_dir.path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), f"{path} has the key"
    assert KEY not in ended.stderr + ended.stdout


class Refusing(BaseHTTPRequestHandler):
    """Answers everything with one status."""

    status = 401

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(self.status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST  # noqa: N815

    def log_message(self, *args: Any) -> None: ...


@pytest.mark.parametrize("status", [401, 404])
def test_a_server_that_refuses_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Refusing", (Refusing,), {"status": status})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        part = WandB(base_url=f"http://127.0.0.1:{server.server_port}", init_timeout_s=20)
        with pytest.raises(RunnerError, match=r"the server refused the run: .* Check the login \(`wandb login`\)"):
            part.open(info(tmp_path / "run"))
        server.shutdown()


@pytest.mark.parametrize("end", [SystemExit(2), ConnectionResetError()])
def test_how_its_process_ends_does_not_hide_what_the_server_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    import wandb

    def teardown() -> None:
        ended()
        raise end

    ended = wandb.teardown
    monkeypatch.setattr(wandb, "teardown", teardown)
    test_a_server_that_refuses_is_an_error(tmp_path, monkeypatch, 401)


def test_nobody_logged_in_is_an_error(runner: Callable[..., Ended], project: Path) -> None:
    environment = {"HOME": str(project), "WANDB_ERROR_REPORTING": "false"}
    ended = runner("train", "points", "tracker=[wandb]", env=environment, code=1)
    assert re.search(r"No API key configured\. .* record offline: tracker.wandb.mode=offline", ended.stderr)


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RunnerError, match=r"pip install wandb, or leave it out: tracker=\[\]"):
        WandB().open(info(tmp_path / "run"))


def test_building_the_part_imports_nothing_of_wandb() -> None:
    said = "import sys, runner.tracker.wandb as w; w.WandB(); print('wandb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"init_timeout_s": 0.0}, r"init_timeout_s=0\.0 must be a finite number of seconds above 0"),
        ({"finish_timeout_s": float("inf")}, "finish_timeout_s=inf must be a finite"),
        ({"base_url": "wandb.example"}, "base_url=wandb.example must start with http"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        WandB(**values)


def test_steps_that_the_server_has_already_are_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    from runner.tracker.wandb import WandBLog

    rows = []

    class Resumed:
        starting_step = 5

        def log(self, values: dict[str, float], step: int) -> None:
            rows.append(step)

    with caplog.at_level(logging.INFO):
        log = WandBLog(None, Resumed())
        for step in (4, 5, 6):
            log.log({"time_s": 0.0}, step=step)
    assert rows == [5, 6]
