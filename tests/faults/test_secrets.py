"""A secret reaches the hook, and is in no file of the run, on no terminal, and in no message."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ended

TYPED, IN_A_FILE, IN_THE_ENVIRONMENT = "typed-5f1c9e77", "standing-8b20d3aa", "exported-c4d6e812"
SECRETS = (TYPED, IN_A_FILE, IN_THE_ENVIRONMENT)
COURIER = '''
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from user_hooks.points import build_model as points


@dataclass(frozen=True, kw_only=True)
class Courier:
    """Leaves digests of what it was given, by rank; fails, showing all of it, when asked to."""

    api_key: str
    password: str
    url: str
    micro_tokens: int = 3
    fail: bool = False

    def check(self, spec):
        return ()

    def build(self):
        return Listener(self)


@dataclass(frozen=True)
class Listener:
    part: Courier

    def before_run(self, run):
        part = self.part
        leave(run.run_dir.path, part.api_key, part.password, part.url)
        if part.fail:
            print("failing")
            raise RuntimeError(f"refused: {part} by {part.url.split('/')[2]}")


def leave(directory, *values):
    rank = os.environ.get("RANK", "0")
    with (directory / f"received_{rank}").open("a") as file:
        file.writelines(hashlib.sha256(value.encode()).hexdigest() + "\\n" for value in values)


def client(api_key):
    return api_key


def build_model(client):
    leave(Path.cwd(), client)
    return points()
'''
OPTION = f"""\
# @package callback.courier
_target_: user_hooks.courier.Courier
api_key: ???
password: {IN_A_FILE}
url: https://${{oc.env:COURIER_HOST}}/v1
micro_tokens: 3
fail: false
"""
ENVIRONMENT = {"COURIER_HOST": IN_THE_ENVIRONMENT}
GIVEN = ["callback=[courier]", f"callback.courier.api_key={TYPED}"]
SHORT = ["run.steps=2", "eval.every_steps=null"]
URL = f"https://{IN_THE_ENVIRONMENT}/v1"


@pytest.fixture(autouse=True)
def courier(project: Path) -> None:
    """A callback of the user's that needs three secrets."""
    (project / "user_hooks" / "courier.py").write_text(COURIER)
    option = project / "conf" / "callback" / "courier.yaml"
    option.parent.mkdir(parents=True)
    option.write_text(OPTION)


def digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def received(path: Path, rank: int = 0) -> list[str]:
    return (path / f"received_{rank}").read_text().split()


def leaks(root: Path, ended: Ended, *, secrets: tuple[str, ...] = SECRETS) -> Iterator[str]:
    """Where a secret is found: in the files and names below a directory, and in what the command printed."""
    texts = {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    texts |= {"stdout": ended.stdout.encode(), "stderr": ended.stderr.encode(), "names": "\n".join(texts).encode()}
    for place, text in texts.items():
        yield from (f"{secret} in {place}" for secret in secrets if secret.encode() in text)


@pytest.mark.fault(
    "a secret in a recipe, the environment or an override", "the hook receives it; no file of the run holds it"
)
@pytest.mark.parametrize(
    "ranks",
    [
        (),
        ("hardware.processes=2", "strategy=ddp"),
        ("hardware.processes=2", "strategy=ddp", "launch.fork=false"),
    ],
    ids=["one", "forked", "started"],
)
def test_hooks_receive_what_no_file_holds(runner: Callable[..., Ended], ranks: tuple[str, ...]) -> None:
    ended = runner("train", "points", *GIVEN, *SHORT, *ranks, "tracker=[tensorboard]", env=ENVIRONMENT, forks=True)
    run = ended.run_dir.path
    for rank in range(2 if ranks else 1):
        assert received(run, rank) == [digest(TYPED), digest(IN_A_FILE), digest(URL)]
    assert [*leaks(run, ended)] == []
    spec = ended.run_dir.spec.read_text()
    assert "api_key: '*** from the command line'" in spec
    assert "password: '*** from " in spec
    assert "callback/courier.yaml'" in spec
    assert "url: '*** from https://${oc.env:COURIER_HOST}/v1'" in spec
    assert "micro_tokens: 3" in spec
    assert "- callback.courier.api_key=***" in spec
    assert '"callback.courier.api_key=***"' in ended.run_dir.provenance.read_text()
    assert "- callback.courier.api_key=***" in (run / ".hydra" / "overrides.yaml").read_text()


def test_neither_does_a_tracker_that_records_the_command_line(runner: Callable[..., Ended]) -> None:
    pytest.importorskip("wandb")
    offline = ["tracker=[wandb]", "tracker.wandb.mode=offline"]
    ended = runner("train", "points", *GIVEN, *SHORT, *offline, env=ENVIRONMENT)
    (recorded,) = ended.run_dir.path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"callback.courier.api_key=***" in recorded.read_bytes()
    assert [*leaks(ended.run_dir.path, ended)] == []


@pytest.mark.fault("a failure whose message shows the configuration", "its secrets are not in it")
@pytest.mark.parametrize("ranks", [(), ("hardware.processes=2", "strategy=ddp")], ids=["one", "forked"])
def test_a_failure_that_shows_the_configuration_does_not_show_secrets(
    runner: Callable[..., Ended], ranks: tuple[str, ...]
) -> None:
    fail = ["callback.courier.fail=true", "callback.courier.micro_tokens=4"]
    ended = runner("train", "points", *GIVEN, *SHORT, *fail, *ranks, env=ENVIRONMENT, code=1)
    assert "RuntimeError: refused: Courier(api_key='***', password='***', url='***', micro_tokens=4" in ended.stderr
    assert "fail=True) by ***\n" in ended.stderr
    assert next(iter(ended.run_dir.failures.iterdir())).read_text().count("***") >= 6
    assert [*leaks(ended.run_dir.path, ended)] == []


def test_resuming_takes_secrets_from_the_environment_and_asks_for_the_others(runner: Callable[..., Ended]) -> None:
    stopped = runner("train", "points", *GIVEN, *SHORT, "run.stop_at_step=1", env=ENVIRONMENT)
    run = stopped.run_dir.path
    said = runner("resume", str(run), code=2).stderr
    assert "callback.courier.api_key: the value, from the command line, is a secret, which no record of a run" in said
    assert "Give its value: callback.courier.api_key=VALUE" in said
    assert "callback.courier.password: the value, from " in said
    assert "callback.courier.url: https://${oc.env:COURIER_HOST}/v1 cannot be taken from the environment here: " in said
    assert "COURIER_HOST" in said
    again = [f"callback.courier.api_key={TYPED}", f"callback.courier.password={IN_A_FILE}"]
    ended = runner("resume", str(run), *again, env=ENVIRONMENT)
    assert received(run) == [digest(TYPED), digest(IN_A_FILE), digest(URL)] * 2
    assert [*leaks(run, ended)] == []


def test_a_secret_of_a_hook_does_not_make_it_another_run(runner: Callable[..., Ended], project: Path) -> None:
    """References are compared, so a renewed key continues the run."""
    model = ["model._target_=user_hooks.courier.build_model", "~model.dropout"]
    client = ["+model.client._target_=user_hooks.courier.client", f"+model.client.api_key={TYPED}"]
    stopped = runner("train", "points", *model, *client, *SHORT, "run.stop_at_step=1")
    run = stopped.run_dir.path
    ended = runner("resume", str(run), f"model.client.api_key={IN_A_FILE}")
    assert received(project) == [digest(TYPED), digest(IN_A_FILE)]
    assert [*leaks(run, ended)] == []


def test_a_sweep_keeps_them_too(runner: Callable[..., Ended], project: Path) -> None:
    option = project / "conf" / "callback" / "courier.yaml"
    option.write_text(OPTION.replace(IN_A_FILE, "${oc.env:COURIER_PASSWORD}"))
    swept = ["-m", f"callback.courier.api_key={TYPED},{IN_A_FILE}", "callback=[courier]", "sweep.dir=swept"]
    environment = ENVIRONMENT | {"COURIER_PASSWORD": "secret-of-a-sweep"}
    ended = runner("train", "points", *swept, *SHORT, env=environment, timeout_s=120)
    for job, secret in enumerate((TYPED, IN_A_FILE)):
        assert received(project / "swept" / str(job)) == [digest(secret), digest("secret-of-a-sweep"), digest(URL)]
    assert [*leaks(project / "swept", ended, secrets=(*SECRETS, "secret-of-a-sweep"))] == []
    assert "***" in ended.stdout  # the column of the swept key


def test_a_sweep_refuses_a_secret_that_hydra_would_write_down(runner: Callable[..., Ended], project: Path) -> None:
    ended = runner("train", "points", "-m", *GIVEN, "optimizer.lr=1e-3,1e-2", env=ENVIRONMENT, code=2)
    assert "callback.courier.password: a sweep would write this secret into a file. Use" in ended.stderr
    assert not (project / "multirun").exists()
    assert [*leaks(project / "recipes", ended)] == []


@pytest.mark.parametrize("flags", [("--cfg", "job"), ("--cfg", "all"), ("--cfg", "job", "--resolve")])
def test_a_printed_configuration_does_not_show_them(
    runner: Callable[..., Ended], project: Path, flags: tuple[str, ...]
) -> None:
    ended = runner("train", "points", *GIVEN, *flags, env=ENVIRONMENT)
    assert "micro_tokens: 3" in ended.stdout
    assert "password: '***'" in ended.stdout
    assert "api_key: '***'" in ended.stdout
    assert [*leaks(project / "recipes", ended)] == []


@pytest.mark.parametrize(
    "wrong",
    [
        ("callback.courier.micro_tokens=many",),
        ("hardware.processes=${oc.env:COURIER_HOST}",),
        ("callback.courier.api_kex=" + TYPED,),
        ("+callback.courier.api_key=[" + TYPED,),
        ("+model.client={_target_: user_hooks.courier.client, api_key: " + TYPED + "}",),
    ],
)
def test_a_fault_does_not_show_them(runner: Callable[..., Ended], project: Path, wrong: tuple[str, ...]) -> None:
    for verb in ("check", "train"):
        ended = runner(verb, "points", *GIVEN, *wrong, env=ENVIRONMENT, code=2)
        assert [*leaks(project / "recipes", ended)] == []


def test_a_job_that_runs_elsewhere_takes_them_from_its_environment_only(
    runner: Callable[..., Ended], project: Path
) -> None:
    """The launcher of docs/own_launcher.md: a process that shares no memory with the command."""
    text = (Path(__file__).parents[2] / "docs" / "own_launcher.md").read_text()
    (project / "user_hooks" / "background.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    (project / "conf" / "launch").mkdir(parents=True)
    (project / "conf" / "launch" / "background.yaml").write_text("_target_: user_hooks.background.Background\n")
    ended = runner("train", "points", *GIVEN, *SHORT, "launch=background", env=ENVIRONMENT, code=2)
    rule = "callback.courier.api_key: the value, from the command line, is a secret, which no file holds for a job that"
    assert rule in ended.stderr
    assert "Let the job take it from its environment: callback.courier.api_key='${oc.env:NAME}'" in ended.stderr
    assert "callback.courier.url" not in ended.stderr
    assert not (project / "outputs").exists()


def test_files_of_a_run_have_the_permissions_of_the_umask(runner: Callable[..., Ended]) -> None:
    def modes(run: Path) -> set[str]:
        return {oct(path.stat().st_mode & 0o077) for path in [run, *run.rglob("*")] if not path.is_symlink()}

    before = os.umask(0o022)
    try:
        open_run: Any = runner("train", "points", *SHORT).run_dir.path
    finally:
        os.umask(before)
    assert modes(open_run) <= {"0o44", "0o55"}
