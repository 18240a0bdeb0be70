"""Files of strangers name code: which commands import it, which call it, and which only look."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ended

MARKED = """
from pathlib import Path

MARKS = Path(__file__).parent / "marks"
MARKS.mkdir(exist_ok=True)
(MARKS / "imported").touch()


def build_model(**arguments):
    (MARKS / "called").touch()
    raise SystemExit(7)


def build_data():
    (MARKS / "called").touch()


def loss(model, batch):
    (MARKS / "called").touch()
"""
RECIPE = """\
defaults: [base, _self_]
name: theirs
model: {_target_: strange_hooks.build_model}
data: {_target_: strange_hooks.build_data}
loss: {_target_: strange_hooks.loss}
batch: {items: 4}
run: {steps: 3}
"""


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A recipe with its own hooks, outside the working directory; a module of its shadows one of Python's."""
    path = tmp_path / "strange"
    (path / "recipes").mkdir(parents=True)
    (path / "strange_hooks.py").write_text(MARKED)
    (path / "colorsys.py").write_text(MARKED)
    (path / "recipes" / "theirs.yaml").write_text(RECIPE)
    return path


def marks(directory: Path) -> set[str]:
    """What has been done with the strange code."""
    return {path.name for path in (directory / "marks").glob("*")}


def recipe(strange: Path) -> str:
    return str(strange / "recipes" / "theirs.yaml")


@pytest.mark.fault("a check of a stranger's recipe", "none of its code is imported")
def test_a_check_of_a_strange_recipe_imports_none_of_its_code(runner: Callable[..., Ended], strange: Path) -> None:
    ended = runner("check", recipe(strange))
    assert marks(strange) == set()
    rule = "is outside the working directory, so only the runner's own parts of it were imported and checked"
    assert f"not checked  {recipe(strange)} {rule}. To import the others: --imports" in ended.stdout
    assert ended.stdout.endswith("\nnothing is wrong\n")


def test_explaining_a_strange_recipe_imports_none_of_its_code(runner: Callable[..., Ended], strange: Path) -> None:
    foreign = "{_target_: runner.optimizer.foreign.ForeignOptimizer, target: strange_hooks.build_model}"
    (strange / "recipes" / "theirs.yaml").write_text(f"{RECIPE}optimizer: {foreign}\n")
    planted = [
        "strategy._target_=strange_hooks.build_model",
        "+callback.mine._target_=strange_hooks.build_model",
        "+model.inner._target_=colorsys.build_model",
    ]
    ended = runner("explain", recipe(strange), *planted)
    assert marks(strange) == set()
    assert "strategy._target_ = strange_hooks.build_model\n" in ended.stdout


@pytest.mark.parametrize(
    "planted",
    [
        "strategy._target_=strange_hooks.build_model",
        "optimizer._target_=strange_hooks.build_model",
        "optimizer={_target_: runner.optimizer.foreign.ForeignOptimizer, target: strange_hooks.build_model}",
        "schedule={_target_: runner.schedule.foreign.ForeignSchedule, target: strange_hooks.build_model}",
        "+callback.mine._target_=strange_hooks.build_model",
        "+model.inner._target_=colorsys.build_model",
        "precision=fp8",
    ],
)
def test_neither_where_a_part_names_it(runner: Callable[..., Ended], strange: Path, planted: str) -> None:
    key, _, value = planted.partition("=")
    if value.startswith("{"):
        text = RECIPE + f"{key}: {value}\n"
        (strange / "recipes" / "theirs.yaml").write_text(text)
        runner("check", recipe(strange), code=0)
    else:
        runner("check", recipe(strange), planted)
    assert marks(strange) == set()


def test_faults_of_a_strange_recipe_are_still_found(runner: Callable[..., Ended], strange: Path) -> None:
    said = runner("check", recipe(strange), "optimizer.lr=abc", "+run.sed=1", "batch.micro_items=3", code=2).stderr
    assert "optimizer.lr: 'abc' must be a number." in said
    assert "run.sed: Run has no such key. Did you mean seed?" in said
    assert "batch.items: 4 is not a multiple of" in said
    assert marks(strange) == set()


def test_it_is_imported_on_request_and_called_on_another(runner: Callable[..., Ended], strange: Path) -> None:
    said = runner("check", recipe(strange), "--imports", "+data.n=1", code=2).stderr
    assert "data.n: strange_hooks.build_data() does not take 'n'." in said
    assert marks(strange) == {"imported"}
    compiled = ["compile.what=blocks", "blocks.classes=[Linear]"]
    runner("check", recipe(strange), "--imports", *compiled)
    assert marks(strange) == {"imported"}
    ended = runner("check", recipe(strange), "--build", *compiled)  # a hook that ends its process ends no check
    assert marks(strange) == {"imported", "called"}
    assert "Traceback" not in ended.stderr + ended.stdout


def test_a_check_of_ones_own_recipe_imports_its_hooks_and_calls_none(
    runner: Callable[..., Ended], project: Path
) -> None:
    (project / "strange_hooks.py").write_text(MARKED)
    (project / "recipes" / "mine.yaml").write_text(RECIPE)
    for precision in ("fp32", "fp8"):
        ended = runner("check", "mine", "compile.what=blocks", "blocks.classes=[Linear]", f"precision={precision}")
        assert marks(project) == {"imported"}
        assert "not checked  what parts require of the model, which `train` checks before launch." in ended.stdout


@pytest.mark.fault("a target such as os.system", "refused wherever it stands")
@pytest.mark.parametrize(
    "override",
    [
        "model._target_=os.system",
        "+model.inner._target_=builtins.eval",
        "+model.inner={_target_: subprocess.run, _partial_: true}",
        "+model.inner=[{_target_: json.codecs.builtins.exec}]",
        "optimizer._target_=shutil.rmtree",
        "optimizer={_target_: runner.optimizer.foreign.ForeignOptimizer, target: os.kill}",
        "+callback.mine._target_=runpy.run_path",
        "strategy._target_=user_hooks.points.os.system",
    ],
)
def test_what_is_plainly_no_factory_is_refused_wherever_it_stands(
    runner: Callable[..., Ended], project: Path, override: str
) -> None:
    key, _, value = override.lstrip("+").partition("=")
    if value.startswith("{_target_: runner"):
        path = project / "recipes" / "points.yaml"
        path.write_text(path.read_text() + f"{key}: {value}\n")
        argv = ["points"]
    else:
        argv = ["points", override]
    for verb in ("check", "train"):
        said = runner(verb, *argv, code=2).stderr
        assert "are refused: nothing in it builds a part or data" in said
        assert f"\n{key.partition('.')[0]}" in f"\n{said}"
    assert not (project / "outputs").exists()


@pytest.fixture
def trained(runner: Callable[..., Ended]) -> Path:
    return runner("train", "points", "run.steps=4", "run.stop_at_step=2", "eval.every_steps=null").run_dir.path


def plant(run: Path, strange: Path) -> None:
    """Let the newest declaration of a run name strange code wherever it can."""
    spec = run / "spec.yaml"
    text = spec.read_text().replace("user_hooks.points.build_model", "strange_hooks.build_model")
    text = text.replace("import_roots:\n", f"import_roots:\n- {strange}\n")
    assert text.count("strange") >= 2
    text = text.replace("_target_: runner.optimizer.adamw.AdamW", "_target_: os.system\n    command: touch executed")
    spec.write_text(text)


@pytest.mark.fault("an export from a stranger's run", "nothing is imported or called")
def test_an_export_imports_and_calls_nothing(
    runner: Callable[..., Ended], trained: Path, strange: Path, project: Path
) -> None:
    plant(trained, strange)
    ended = runner("export", str(trained))
    assert ended.stdout.splitlines()[0] == "model.safetensors  464 bytes"
    assert marks(strange) == set()
    assert not (project / "executed").exists()


@pytest.mark.fault("a resume of a run that began elsewhere", "refused until it is accepted, once")
def test_a_run_of_another_account_is_resumed_once_it_is_accepted(
    runner: Callable[..., Ended], trained: Path, strange: Path, tmp_path: Path
) -> None:
    plant(trained, strange)
    said = runner("resume", str(trained), code=2).stderr
    spec = trained / "spec.yaml"
    refused = f"DIR: this account has not launched {spec}, or the file has changed since. `runner resume` runs "
    assert said.startswith(f"directory: {trained}\n{refused}")
    assert "'strange_hooks.build_model'" in said
    assert "'os.system'" in said
    assert f"looked for in '{strange}'," in said
    assert said.endswith(f"accept the run, once: runner resume {trained} --trust\n")
    assert marks(strange) == set()


def test_accepting_is_remembered_and_ends_with_the_next_change(
    runner: Callable[..., Ended], trained: Path, tmp_path: Path
) -> None:
    other = {"XDG_STATE_HOME": str(tmp_path / "state")}
    step = "run.stop_at_step"
    runner("resume", str(trained), f"{step}=3", env=other, code=2)
    runner("resume", str(trained), f"{step}=3", "--trust", env=other)
    runner("resume", str(trained), f"{step}=4", env=other)  # what it launched itself needs no word
    known = tmp_path / "state" / "runner" / "trusted"
    assert known.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in known.iterdir()} == {0o600}
    newest = max(trained.glob("spec.attempt_*.yaml"))
    newest.write_text(newest.read_text().replace("steps: 4", "steps: 5"))
    said = runner("resume", str(trained), env=other, code=2).stderr
    assert f"this account has not launched {newest}, or the file has changed since" in said


def test_a_copy_of_ones_own_run_needs_no_word(runner: Callable[..., Ended], trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "elsewhere")
    runner("resume", str(copy))


def test_the_jobs_of_a_sweep_can_be_resumed(runner: Callable[..., Ended], project: Path) -> None:
    argv = ["points", "-m", "optimizer.lr=1e-3", "run.steps=4", "run.stop_at_step=2", "sweep.dir=swept"]
    runner("train", *argv, timeout_s=120)
    runner("resume", "swept/0")


def test_a_home_that_cannot_be_written_stops_no_training(runner: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    homeless = {"XDG_STATE_HOME": str(tmp_path / "file" / "state")}
    ended = runner("train", "points", "run.steps=4", "run.stop_at_step=2", env=homeless)
    assert "this launch is not remembered, so `runner resume` will ask for --trust (docs/security.md)" in ended.stderr
    run = str(ended.run_dir.path)
    assert "runner resume" in runner("resume", run, env=homeless, code=2).stderr
    runner("resume", run, "--trust", env=homeless)
