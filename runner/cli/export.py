"""Exports the weights of a run as safetensors. Reads data only: nothing that the directory names is imported."""

import argparse
from pathlib import Path

from runner.cli.arguments import existing_run
from runner.config.run_dir import RunDir
from runner.errors import Fault, SpecError
from runner.storage.export import export_weights, fresh_directory, model_tensors
from runner.storage.history import manifests
from runner.storage.pretrained import write_model_config

__all__ = ["export"]


def export(found: argparse.Namespace) -> int:
    """Write the weights and print the directory that holds them.

    Raises:
        SpecError: the directory is not a run's, or has no such checkpoint.
        CheckpointError: the checkpoint is corrupted, or the output directory is not empty.
    """
    run_dir = existing_run(found.dir)
    checkpoint = _checkpoint(run_dir, found.step)
    out = (found.out or run_dir.path / "export" / checkpoint.name).absolute()
    with fresh_directory(out) as partial:
        if not found.no_config:
            write_model_config(partial, run_dir.model_config, model_tensors(checkpoint, dtype=found.dtype))
        export_weights(checkpoint, partial, dtype=found.dtype, max_shard_bytes=found.max_shard_size)
    for file in sorted(out.iterdir()):
        print(f"{file.name}  {file.stat().st_size:,} bytes")
    print(out)
    return 0


def _checkpoint(run_dir: RunDir, step: int | None) -> Path:
    """The checkpoint of a step, or the newest."""
    committed = list(manifests(run_dir.checkpoints))
    if not committed:
        rule = (
            f"{run_dir.path} has no committed checkpoint yet. A run commits by checkpoint.every_steps and at its end."
        )
        raise SpecError(Fault(key="DIR", message=rule))
    wanted = committed[0].name if step is None else f"step_{step}"
    if wanted not in {path.name for path in committed}:
        steps = sorted(int(path.name.removeprefix("step_")) for path in committed)
        there = ", ".join(str(step) for step in steps)
        raise SpecError(Fault(key="--step", message=f"there is no checkpoint of step {step}. There are: {there}."))
    return run_dir.checkpoints / wanted
