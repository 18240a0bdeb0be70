"""Exports the weights of a run as safetensors. Reads data only: nothing that the directory names is imported."""

import argparse

from runner.cli.arguments import existing_run
from runner.runs.chosen import chosen_checkpoint
from runner.storage.export import export_weights, fresh_directory, model_tensors
from runner.storage.pretrained import write_model_config

__all__ = ["export"]


def export(found: argparse.Namespace) -> int:
    """Write the weights and print the directory that holds them.

    Raises:
        SpecError: the directory is not a run's, or has no such checkpoint.
        CheckpointError: the checkpoint is corrupted, or the output directory is not empty.
    """
    run_dir = existing_run(found.dir)
    checkpoint = chosen_checkpoint(run_dir, found.step)
    out = (found.out or run_dir.path / "export" / checkpoint.name).absolute()
    with fresh_directory(out) as partial:
        if not found.no_config:
            write_model_config(partial, run_dir.model_config, model_tensors(checkpoint, dtype=found.dtype))
        export_weights(checkpoint, partial, dtype=found.dtype, max_shard_bytes=found.max_shard_size)
    for file in sorted(out.iterdir()):
        print(f"{file.name}  {file.stat().st_size:,} bytes")
    print(out)
    return 0
