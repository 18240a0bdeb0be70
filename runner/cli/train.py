"""`runner train`: trains a recipe, sweeps over it, or prints what Hydra's flags ask for."""

import argparse
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO

from runner.cli.arguments import TrainArguments, train_arguments
from runner.cli.launched import prepare_process, print_directory
from runner.composition.find_recipe import find
from runner.composition.recipe import Recipe, search_path
from runner.config.masking import collected, shown_yaml
from runner.config.secret import Secret
from runner.errors import SpecError
from runner.runs.train import train as launch

__all__ = ["train"]


def train(found: argparse.Namespace) -> int:
    """Train, sweep, or print what Hydra's flags ask for.

    Raises:
        SpecError: the declaration has faults.
        RunFailed: a rank failed.
        Interrupted: a signal ended the run.
    """
    prepare_process()
    if found.record is not None:
        # Imported here, as below: a single run of a recipe must not load what others need.
        from runner.cli.again import train_again

        return train_again(found)
    arguments = train_arguments(found)
    recipe = find(arguments.recipe)
    if found.try_out:
        from runner.cli.try_out import try_out

        return try_out(recipe, arguments, command=found.command)
    if arguments.hydra_flags:
        return _show(recipe, arguments)
    if arguments.multirun:
        from runner.cli.sweep import sweep

        return sweep(recipe, arguments, command=found.command)
    launch(
        recipe,
        arguments.overrides,
        config_dirs=arguments.config_dirs,
        trust=arguments.trust,
        command=found.command,
        at_end=print_directory,
    )
    return 0


def _show(recipe: Recipe, arguments: TrainArguments) -> int:
    """Print Hydra's own output. Faults are raised as in a run, except with --info, which is for finding them."""
    from runner.composition.compose import compose
    from runner.composition.hydra_main import hydra_main
    from runner.composition.secrets import secret_overrides

    secrets: Mapping[str, Secret] = {}
    if "--cfg" in arguments.hydra_flags or "--info" in arguments.hydra_flags:
        composed = compose(recipe, arguments.overrides, config_dirs=arguments.config_dirs)
        if composed.faults and "--cfg" in arguments.hydra_flags:
            raise SpecError(*composed.faults)
        secrets = collected(composed.config)
        for one in composed.left_out:  # Hydra prints it all the same
            print(f"left out: {one}", file=sys.stderr)
    directories = (*search_path(recipe), *arguments.config_dirs)
    printed = StringIO()
    with secret_overrides(arguments.overrides) as overrides, redirect_stdout(printed):
        code = hydra_main(recipe, [*arguments.hydra_flags, *overrides], directories=directories)
    print(shown_yaml(printed.getvalue(), secrets), end="")
    return code
