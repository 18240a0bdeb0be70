"""`runner train`: compose, check, claim a directory, freeze, launch."""

from pathlib import Path

from runner.cli import attempt
from runner.cli.arguments import TrainArguments, parse_train
from runner.compose.composed import Composed
from runner.compose.fork import compose_in_fork
from runner.compose.recipe import Recipe, find, search_path
from runner.config.run_dir import RunDir, claim, claim_named
from runner.config.run_spec import RunSpec
from runner.errors import SpecError

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Train, sweep, or print what Hydra's flags ask for.

    Raises:
        SpecError: the declaration is wrong.
        RunFailed: a rank failed.
        Interrupted: a signal ended the run.
    """
    arguments = parse_train(argv)
    recipe = find(arguments.recipe)
    if arguments.shows:
        return _show(recipe, arguments)
    if arguments.multirun:
        # Here, as in _show: Hydra's modules must not become a single run's.
        from runner.cli.sweep import sweep

        return sweep(recipe, arguments, command=["runner", "train", *argv])
    composed = compose_in_fork(recipe, arguments.overrides, config_dirs=arguments.config_dirs)
    return _train(composed, command=["runner", "train", *argv])


def _train(composed: Composed, *, command: list[str]) -> int:
    spec = composed.read()

    def freeze() -> Path:
        run_dir = RunDir(_claimed(spec))
        composed.write_hydra_dir(run_dir.path)
        return attempt.begin(run_dir, composed.stored(), spec, command=command)

    attempt.run(spec, freeze)
    return 0


def _claimed(spec: RunSpec) -> Path:
    if spec.run.dir is not None:
        return claim_named(Path(spec.run.dir).absolute(), key="run.dir")
    return claim(Path.cwd() / "outputs" / spec.name)


def _show(recipe: Recipe, arguments: TrainArguments) -> int:
    """Hydra's own output; what cannot be composed is told as `train` would, except where --info is to find out why."""
    from runner.compose.compose import compose
    from runner.compose.hydra_main import hydra_main

    if "--cfg" in arguments.shows:
        composed = compose(recipe, arguments.overrides, config_dirs=arguments.config_dirs)
        if composed.faults:
            raise SpecError(*composed.faults)
    directories = (*search_path(recipe), *arguments.config_dirs)
    return hydra_main(recipe, [*arguments.shows, *arguments.overrides], directories=directories)
