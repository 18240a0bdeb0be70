"""Trains a recipe: compose, check, claim a directory, freeze, launch."""

import argparse
import sys
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path

from runner import terminal
from runner.cli.arguments import TrainArguments, train_arguments
from runner.cli.new_run import claim_for
from runner.composition.fork import composing
from runner.composition.recipe import Recipe, find, search_path
from runner.config.masking import collected, shown_yaml
from runner.config.run_dir import RunDir
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
    terminal.protect()
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
    with ExitStack() as cleanup:
        with composing(recipe, arguments.overrides, config_dirs=arguments.config_dirs) as (composed, outline):
            for line in (*composed.left_out, outline):
                print(line, file=sys.stderr, flush=True)
            # Of several machines, one makes the directory, once they have met.
            claimed = claim_for(outline, cleanup) if outline.nodes == 1 else None
        from runner.cli import attempt  # not needed to say what the run is about to do

        spec = composed.read()

        def freeze(lock: attempt.Lock) -> Path:
            run_dir = RunDir(claimed or claim_for(outline, cleanup))
            lock(run_dir)
            composed.write_hydra_dir(run_dir.path)
            path = attempt.begin(run_dir, composed.stored(), spec, command=found.command)
            cleanup.pop_all()  # from here on the directory stays, however the attempt ends
            return path

        attempt.run(spec, freeze)
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
