"""`runner resume`: continues a run from its directory."""

import argparse

from runner.cli.arguments import run_words
from runner.cli.launched import prepare_process, print_directory
from runner.runs.resume import resume as launch

__all__ = ["resume"]


def resume(found: argparse.Namespace) -> int:
    """Continue a run.

    Raises:
        SpecError: the directory is not a run's, or did not begin on this account; an override cannot be applied, or it
            would make this another run.
        CheckpointError: the checkpoint chosen with --from is corrupted, or the run's checkpoints are gone.
        LaunchError: another attempt at the run is under way.
        RunFailed: a rank failed.
        Interrupted: a signal ended the run.
    """
    prepare_process()
    run_dir, overrides = run_words(found, prog="runner resume")
    launch(
        run_dir,
        overrides,
        allow=found.allow,
        start=found.resume_from,
        trust=found.trust,
        command=found.command,
        at_end=print_directory,
    )
    return 0
