"""Trains a recipe: compose, check, claim a directory, freeze, launch."""

import argparse
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from runner.cli import attempt
from runner.cli.arguments import TrainArguments, train_arguments
from runner.compose.composed import Composed
from runner.compose.fork import compose_in_fork
from runner.compose.recipe import Recipe, find, search_path
from runner.config.masking import collected, shown_yaml
from runner.config.run_dir import RunDir, claim, claim_named
from runner.config.run_spec import RunSpec
from runner.config.secret import Secret
from runner.errors import SpecError

__all__ = ["train"]


def train(found: argparse.Namespace) -> int:
    """Train, sweep, or print what Hydra's flags ask for.

    Raises:
        SpecError: the declaration has faults.
        RunFailed: a rank failed.
        Interrupted: a signal ended the run.
    """
    arguments = train_arguments(found)
    recipe = find(arguments.recipe)
    if arguments.hydra_flags:
        return _show(recipe, arguments)
    if arguments.multirun:
        # Imported here, as in _show: a single run must not load Hydra's modules.
        from runner.cli.sweep import sweep

        return sweep(recipe, arguments, command=found.command)
    composed = compose_in_fork(recipe, arguments.overrides, config_dirs=arguments.config_dirs)
    return _train(composed, command=found.command)


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
    """Print Hydra's own output. Faults are raised as in a run, except with --info, which is for finding them."""
    from runner.compose.compose import compose
    from runner.compose.hydra_main import hydra_main
    from runner.compose.secrets import secret_overrides

    secrets: Mapping[str, Secret] = {}
    if "--cfg" in arguments.hydra_flags or "--info" in arguments.hydra_flags:
        composed = compose(recipe, arguments.overrides, config_dirs=arguments.config_dirs)
        if composed.faults and "--cfg" in arguments.hydra_flags:
            raise SpecError(*composed.faults)
        secrets = collected(composed.config)
    directories = (*search_path(recipe), *arguments.config_dirs)
    printed = StringIO()
    with secret_overrides(arguments.overrides) as overrides, redirect_stdout(printed):
        code = hydra_main(recipe, [*arguments.hydra_flags, *overrides], directories=directories)
    print(shown_yaml(printed.getvalue(), secrets), end="")
    return code
