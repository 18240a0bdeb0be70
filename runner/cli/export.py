"""Exports the weights of a run as safetensors. Reads data only: nothing that the directory names is imported."""

import argparse

from runner.cli.arguments import existing_run
from runner.config.nearest import did_you_mean, listed
from runner.errors import Fault, SpecError
from runner.protocols.state import MODEL
from runner.runs.chosen import chosen_checkpoint
from runner.storage.export import as_exported, export_weights, fresh_directory, models_in
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
    models = models_in(checkpoint)
    model = _chosen(found.model, [*models])
    folder = checkpoint.name if model == MODEL else f"{checkpoint.name}-{model}"
    out = (found.out or run_dir.path / "export" / folder).absolute()
    with fresh_directory(out) as partial:
        if not found.no_config:
            tensors = as_exported(models.get(model, {}), found.dtype)
            write_model_config(partial, run_dir.model_config(model), tensors)
        export_weights(checkpoint, partial, dtype=found.dtype, max_shard_bytes=found.max_shard_size, model=model)
    for file in sorted(out.iterdir()):
        print(f"{file.name}  {file.stat().st_size:,} bytes")
    print(out)
    return 0


def _chosen(name: str | None, models: list[str]) -> str:
    """The model to export: the only one, or the one that is asked for."""
    if name is None and len(models) < 2:
        return models[0] if models else MODEL
    if name in models:
        return str(name)
    what = "the run has several models" if name is None else f"there is no model {name!r}.{did_you_mean(name, models)}"
    raise SpecError(Fault(key="--model", message=f"{what}. Choose one: {listed(models)}."))
