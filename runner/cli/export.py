"""`runner export`: the weights of a run, as safetensors that other programs read."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from runner.cli.arguments import Parser
from runner.config import hooks, store
from runner.config.run_dir import RunDir
from runner.errors import Fault, SpecError
from runner.storage.export import FLOATS, export_weights, fresh_directory, model_tensors
from runner.storage.history import manifests
from runner.storage.pretrained import write_config

__all__ = ["main"]

SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B?", re.IGNORECASE)


def main(argv: list[str]) -> int:
    """Write the weights and print where they are.

    Raises:
        SpecError: no run, no such checkpoint, or a value that cannot be.
        CheckpointError: the checkpoint is corrupted, or the output directory is taken.
        HookError: the model cannot be asked for its config.
    """
    parser = Parser(prog="runner export", add_help=False, allow_abbrev=False)
    parser.add_argument("dir", metavar="DIR", type=Path)
    parser.add_argument("--step", type=int)
    parser.add_argument("--dtype", choices=FLOATS)
    parser.add_argument("--max-shard-size", type=_bytes, default="5GB")
    parser.add_argument("--config", choices=("meta", "cpu", "none"), default="meta")
    parser.add_argument("--out", type=Path)
    found = parser.parse_args(argv)
    run_dir = _run_dir(found.dir)
    checkpoint = _checkpoint(run_dir, found.step)
    out = (found.out or run_dir.path / "export" / checkpoint.name).absolute()
    with fresh_directory(out) as partial:
        if found.config != "none":
            tensors = model_tensors(checkpoint, dtype=found.dtype)
            write_config(partial, _model_hook(run_dir), tensors, device=found.config)
        export_weights(checkpoint, partial, dtype=found.dtype, max_shard_bytes=found.max_shard_size)
    for file in sorted(out.iterdir()):
        print(f"{file.name}  {file.stat().st_size:,} bytes")
    print(out)
    return 0


def _run_dir(path: Path) -> RunDir:
    run_dir = RunDir(path.absolute())
    if not run_dir.specs():
        what = "is not a run's directory: it has no spec.yaml" if path.is_dir() else "is no directory"
        rule = f"{path} {what}. `runner train` prints a run's directory as its last line."
        raise SpecError(Fault(key="DIR", message=rule))
    return run_dir


def _checkpoint(run_dir: RunDir, step: int | None) -> Path:
    """That of a step, or the newest commit."""
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


def _model_hook(run_dir: RunDir) -> Callable[[], object]:
    """The model hook of the run's last attempt. The rest of the spec is not read: it may need what is not here."""
    stored = store.load(run_dir.specs()[-1])
    hook = hooks.hook_of(stored.config["model"])

    def build_model() -> object:
        return hooks.resolve(hook, stored.import_roots)()  # resolving builds nested targets: not before it is called

    return build_model


def _bytes(text: str) -> int:
    """A size as people write it: KB, MB, GB, TB count in thousands, KiB, MiB, GiB, TiB in 1024s."""
    found = SIZE.fullmatch(text.strip())
    factor = 1 if not found or not found[2] else (1024 if found[3] else 1000) ** (" KMGT".index(found[2].upper()))
    size = int(float(found[1]) * factor) if found else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 5GB, 500MB or 2GiB.")
    return size
