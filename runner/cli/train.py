"""Trains a recipe: compose, check, claim a directory, freeze, launch."""

import argparse
import contextlib
import functools
import itertools
import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path

from runner import terminal
from runner.cli.approval import approve
from runner.cli.arguments import TrainArguments, train_arguments
from runner.composition.fork import composing
from runner.composition.outline import Outline
from runner.composition.recipe import Recipe, find, search_path
from runner.config.claim import claim, claim_named
from runner.config.masking import collected, shown_yaml
from runner.config.run_dir import RunDir
from runner.config.secret import Secret
from runner.errors import SpecError

__all__ = ["claim_directory", "train"]


def train(found: argparse.Namespace) -> int:
    """Train, sweep, or print what Hydra's flags ask for.

    Raises:
        SpecError: the declaration has faults.
        RunFailed: a rank failed.
        Interrupted: a signal ended the run.
    """
    terminal.protect()
    arguments = train_arguments(found)
    recipe = find(arguments.recipe)
    if arguments.hydra_flags:
        return _show(recipe, arguments)
    if arguments.multirun:
        # Imported here, as in _show: a single run must not load Hydra's modules.
        from runner.cli.sweep import sweep

        return sweep(recipe, arguments, command=found.command)
    approving = functools.partial(approve, trust=arguments.trust)
    with ExitStack() as cleanup:
        with composing(recipe, arguments.overrides, config_dirs=arguments.config_dirs, approve=approving) as (
            composed,
            outline,
        ):
            _tell(str(outline))
            # Of several machines, one makes the directory, once they have met.
            claimed = claim_directory(outline, cleanup) if outline.nodes == 1 else None
        from runner.cli import attempt  # not needed to say what the run is about to do

        spec = composed.read()

        def freeze(lock: attempt.Lock) -> Path:
            run_dir = RunDir(claimed or claim_directory(outline, cleanup))
            lock(run_dir)
            composed.write_hydra_dir(run_dir.path)
            path = attempt.begin(run_dir, composed.stored(), spec, command=found.command)
            cleanup.pop_all()  # from here on the directory stays, however the attempt ends
            return path

        attempt.run(spec, freeze)
    return 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def claim_directory(outline: Outline, cleanup: ExitStack) -> Path:
    """Make the run's directory and say where it is.

    Args:
        cleanup: gets the removal of what was made, in case the attempt does not begin.

    Raises:
        SpecError: it cannot be made.
    """
    base = Path.cwd() / (Path("outputs") / outline.name if outline.directory is None else outline.directory)
    there = next(path for path in (base, *base.parents) if _exists(path))
    claimed = claim(base, key="run.dir") if outline.directory is None else claim_named(base, key="run.dir")
    cleanup.callback(_remove, claimed, below=there)
    _tell(f"directory: {claimed}")
    return claimed


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no directory can have such a name, which claiming it will tell
        return False


def _remove(directory: Path, *, below: Path) -> None:
    """Remove a directory that this process made, and those above it that are empty then, up to one that stays."""
    shutil.rmtree(directory, ignore_errors=True)
    with contextlib.suppress(OSError):  # another run has begun in one of them
        for path in itertools.takewhile(lambda path: path != below, directory.parents):
            path.rmdir()


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
    directories = (*search_path(recipe), *arguments.config_dirs)
    printed = StringIO()
    with secret_overrides(arguments.overrides) as overrides, redirect_stdout(printed):
        code = hydra_main(recipe, [*arguments.hydra_flags, *overrides], directories=directories)
    print(shown_yaml(printed.getvalue(), secrets), end="")
    return code
