"""What a Python program calls: `from runner import train, resume, evaluate, predict, …`. See docs/python.md."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from runner.cli.arguments import existing_directory, existing_run, existing_run_or_recipe, refuse_directories
from runner.composition.find_recipe import find
from runner.composition.recipe import is_own
from runner.config.run_spec import RunSpec
from runner.errors import Fault, SpecError
from runner.runs.process import launch
from runner.runs.record import RunRecord

if TYPE_CHECKING:
    from runner.runs.declared import Source

__all__ = ["RunRecord", "RunSpec", "compose", "evaluate", "load_run", "predict", "resume", "train"]

AnyPath: TypeAlias = str | os.PathLike[str]


def compose(
    recipe: AnyPath, overrides: Sequence[str] = (), *, config_dirs: Sequence[AnyPath] = (), imports: bool = False
) -> RunSpec:
    """Compose and check a declaration, as `runner check` does; nothing is launched, and no hook is called.

    Args:
        recipe: name of a recipe, or path of a .yaml file.
        overrides: in Hydra's grammar: ["optimizer.lr=0.1", "strategy=ddp"].
        config_dirs: directories that are searched for groups after all others.
        imports: import what a recipe outside the working directory names, to check it.

    Returns:
        Its typed sections and parts; `config` has all of it as plain dicts and lists, without secrets.

    Raises:
        SpecError: with every fault at once.
    """
    from runner.composition.compose import compose as compose_with_hydra  # Hydra takes 0.1 s to import

    found = find(os.fspath(recipe))
    if not imports and not is_own(found):
        rule = (
            f"{found.path} is outside the working directory. Checking it imports the code that it names: imports=True"
        )
        raise SpecError(Fault(key="recipe", message=rule))
    with _same_import_path():
        return compose_with_hydra(found, _checked(overrides), config_dirs=_paths(config_dirs)).read(rules=())


def train(
    recipe: AnyPath, overrides: Sequence[str] = (), *, config_dirs: Sequence[AnyPath] = (), trust: bool = False
) -> RunRecord:
    """Train a recipe, as `runner train` does, and wait for its end. The run has processes of its own.

    Args:
        recipe: name of a recipe, or path of a .yaml file.
        overrides: in Hydra's grammar: ["run.steps=100", "hardware.processes=2", "strategy=ddp"].
        config_dirs: directories that are searched for groups after all others.
        trust: accept a recipe that is not your own (--trust).

    Returns:
        The run, read back. It is queued if the launcher has submitted it to run elsewhere.

    Raises:
        SpecError: the declaration has faults; nothing has begun.
        RunFailed: a rank failed; `exit_code` is that of the cause.
        Interrupted: the run was asked to stop, and has saved a checkpoint.
        KeyboardInterrupt: this program was (Ctrl-C), and so was the run.
    """
    from runner.runs.train import train as train_here

    words = _checked(overrides)
    directory = launch(
        train_here,
        recipe=find(os.fspath(recipe)),
        overrides=words,
        config_dirs=_paths(config_dirs),
        trust=trust,
        command=["runner", "train", os.fspath(recipe), *words],
    )
    return RunRecord(directory)


def resume(
    directory: AnyPath,
    overrides: Sequence[str] = (),
    *,
    allow: Sequence[str] = (),
    start: str | None = None,
    trust: bool = False,
) -> RunRecord:
    """Continue a run from its newest committed checkpoint, as `runner resume` does, and wait for its end.

    Args:
        directory: the run's directory.
        overrides: in Hydra's grammar; the run keeps the rest of its declaration.
        allow: keys that may change although they define the run (--allow).
        start: the checkpoint to start from, such as "step_40" (--from); "0" = from step 0, if the checkpoints are gone.
        trust: accept a run that did not begin on this account (--trust).

    Returns:
        The run, read back.

    Raises:
        SpecError: the directory is not a run's, or did not begin on this account; an override cannot be applied, or it
            would make this another run.
        CheckpointError: the checkpoint is corrupted, or the run's checkpoints are gone.
        LaunchError: another attempt at the run is under way.
        RunFailed, Interrupted, KeyboardInterrupt: as for `train`.
    """
    from runner.runs.resume import resume as resume_here  # imports Hydra

    words = _checked(overrides)
    flags = [*(f"--allow={key}" for key in allow), *([f"--from={start}"] if start else []), *["--trust"] * trust]
    return RunRecord(
        launch(
            resume_here,
            run_dir=existing_run(Path(directory)),
            overrides=words,
            allow=list(allow),
            start=start,
            trust=trust,
            command=["runner", "resume", os.fspath(directory), *words, *flags],
        )
    )


def evaluate(
    source: AnyPath,
    overrides: Sequence[str] = (),
    *,
    step: int | None = None,
    best: bool = False,
    weights: AnyPath | None = None,
    config_dirs: Sequence[AnyPath] = (),
    trust: bool = False,
) -> dict[str, float]:
    """Evaluate weights on the evaluation sets, as `runner evaluate` does, and wait for the end.

    Args:
        source: a run's directory; or a recipe, whose model is used as its hook makes it, unless there are `weights`.
        overrides: in Hydra's grammar: ["metric=[f1]", "strategy=fsdp", "hardware.processes=2"].
        step: the checkpoint of this step (--step); None = the newest.
        best: the best checkpoint by checkpoint.metric (--best).
        weights: exported weights instead: a directory, or a .safetensors file (--weights).
        config_dirs: for a recipe, directories that are searched for groups after all others.
        trust: accept a run that did not begin on this account, or a recipe that is not your own (--trust).

    Returns:
        The metrics by name, such as eval/loss.

    Raises:
        SpecError: it is neither a run's directory nor a recipe; the run did not begin on this account; an override
            cannot be applied; there is no such checkpoint.
        CheckpointError: the weights are damaged, or those of another model.
        RunFailed, Interrupted, KeyboardInterrupt: as for `train`.
    """
    from runner.runs.jobs import evaluate as evaluate_here
    from runner.runs.jobs import read_evaluation

    chosen = _source(source, overrides, config_dirs, step=step, best=best, weights=weights, trust=trust)
    return read_evaluation(launch(evaluate_here, source=chosen))


def predict(
    source: AnyPath,
    overrides: Sequence[str] = (),
    *,
    on: str | None = None,
    out: AnyPath | None = None,
    step: int | None = None,
    best: bool = False,
    weights: AnyPath | None = None,
    config_dirs: Sequence[AnyPath] = (),
    trust: bool = False,
) -> Path:
    """Write what a model says of each item of a dataset, as `runner predict` does, and wait for the end.

    Args:
        source, overrides, step, best, weights, config_dirs, trust: as for `evaluate`.
        on: the dataset: train, eval, or the name of an evaluation set (--on); None = the only evaluation set.
        out: the file, which must not exist; .jsonl, .parquet or .safetensors (--out).

    Returns:
        The file.

    Raises:
        SpecError: as for `evaluate`; or the file exists, or holds parts of another prediction.
        CheckpointError, RunFailed, Interrupted, KeyboardInterrupt: as for `evaluate`. The same call goes on where an
            earlier one ended.
    """
    from runner.runs.jobs import predict as predict_here

    chosen = _source(source, overrides, config_dirs, step=step, best=best, weights=weights, trust=trust)
    return launch(predict_here, source=chosen, on=on, out=None if out is None else Path(out))


def load_run(directory: AnyPath) -> RunRecord:
    """Read a run back from its directory. Runs no code that the directory names, and changes nothing in it.

    Raises:
        SpecError: it is not a run's directory.
    """
    return RunRecord(existing_run(Path(directory)).path)


def _checked(overrides: Sequence[str]) -> list[str]:
    """The overrides.

    Raises:
        SpecError: one of them cannot be an override.
    """
    if isinstance(overrides, str):
        raise SpecError(Fault(key="overrides", message=f"{overrides!r} must be a list: [{overrides!r}]"))
    wrong = [word for word in overrides if word.startswith("-") or not ("=" in word or word.startswith(("~", "+")))]
    if wrong:
        rule = "is not an override. Write key=value, group=option, +key=value or ~key."
        raise SpecError(*(Fault(key="overrides", message=f"{word!r} {rule}") for word in wrong))
    refuse_directories(overrides)
    return list(overrides)


def _source(
    source: AnyPath,
    overrides: Sequence[str],
    config_dirs: Sequence[AnyPath],
    *,
    weights: AnyPath | None,
    **which: Any,
) -> "Source":
    from runner.runs.declared import Source  # imports Hydra

    return Source(
        of=existing_run_or_recipe(os.fspath(source)),
        overrides=_checked(overrides),
        config_dirs=_paths(config_dirs),
        weights=None if weights is None else Path(weights),
        **which,
    )


def _paths(directories: Sequence[AnyPath]) -> list[Path]:
    return [existing_directory(Path(path)) for path in directories]


@contextmanager
def _same_import_path() -> Iterator[None]:
    """Put sys.path back after the block: checking a recipe puts its directories first."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before
