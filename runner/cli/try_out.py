"""`runner train --try`: the whole way of a recipe in a few steps, whatever its numbers say.

Two attempts in a directory that is removed afterwards. The first evaluates, takes two steps and saves; the second
continues from that and takes two more. The recipe stays as it is but for when something is due: its schedule spans all
of its steps, and a step has all of its items.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace

from runner.cli.arguments import TrainArguments
from runner.composition.compose import compose
from runner.composition.composed import Composed
from runner.composition.overrides import apply_overrides
from runner.composition.recipe import Recipe
from runner.config.read import read
from runner.config.run_dir import RunDir
from runner.config.secret import Secret
from runner.config.store import StoredSpec
from runner.errors import Fault, SpecError
from runner.runs.approval import approve
from runner.runs.interrupts import interrupted_by_signals
from runner.runs.job import run_in_child
from runner.runs.new_run import claim_for

__all__ = ["try_out"]

STEPS = 2
"""Of each attempt."""
OVERRIDES = ("eval.at_start=true", "log.every_steps=1", "run.dir=null", "tracker=[]")


def try_out(recipe: Recipe, arguments: TrainArguments, *, command: list[str]) -> int:
    """Try a recipe. What was found is printed; the directory stays only if an attempt fails.

    Returns:
        0, or the exit code of the attempt that failed.

    Raises:
        SpecError: the declaration has faults.
        Interrupted: a signal ended it.
    """
    if arguments.multirun or arguments.hydra_flags:
        flag = "-m" if arguments.multirun else arguments.hydra_flags[0]
        raise SpecError(Fault(key=flag, message="does not go together with --try.", origin="the command line"))
    began = time.monotonic()
    whole = compose(recipe, arguments.overrides, config_dirs=arguments.config_dirs)
    approve(whole, trust=arguments.trust)
    outline = whole.outline()
    if outline.nodes > 1:
        rule = f"--try takes place on one machine, and this run has {outline.nodes}. Add launch=local."
        raise SpecError(Fault(key="launch.nodes", message=rule))
    stops = [step for step in (STEPS, 2 * STEPS) if step < outline.steps] or [outline.steps]
    for line in (*whole.left_out, outline):
        print(line, file=sys.stderr, flush=True)
    declared = whole.read()
    stored = replace(whole.stored(), config=dict(declared.config))
    with ExitStack() as cleanup:
        run_dir = RunDir(claim_for(replace(outline, directory=None), cleanup))
        with interrupted_by_signals():
            code = 0
            for stop in stops:
                tried = apply_overrides(stored, [*OVERRIDES, *_saving(whole), f"run.stop_at_step={stop}"]).stored
                code = code or _attempt(run_dir, tried, declared.secrets, command=command)
        if code:
            cleanup.pop_all()
            print(f"The try failed. Its directory stays: {run_dir.path}", file=sys.stderr, flush=True)
            return code
        print("\n".join(_findings(run_dir, steps=outline.steps)))
    left_out = ", ".join(whole.config.get("tracker") or ())
    trackers = f", without its trackers ({left_out})" if left_out else ""
    print(f"all of it works{trackers}: {time.monotonic() - began:.1f} s, and nothing is left of it")
    return 0


def _saving(whole: Composed) -> list[str]:
    """Overrides with which the run saves where it stops, whether its option can or not."""
    at_end = whole.config["checkpoint"].get("at_end")
    return [] if at_end else ["checkpoint=sharded" if at_end is None else "checkpoint.at_end=true"]


def _attempt(run_dir: RunDir, stored: StoredSpec, secrets: Mapping[str, Secret], *, command: list[str]) -> int:
    spec = read(stored.config, import_roots=stored.import_roots, check=False, secrets=secrets)
    return run_in_child(run_dir, stored, spec, command=command)


def _findings(run_dir: RunDir, *, steps: int) -> Iterator[str]:
    """What the attempts have left in their directory, a line each."""
    records = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
    trained = [record for record in records if "train/loss" in record]
    losses = " → ".join(f"{record['train/loss']:.4g}" for record in (trained[0], trained[-1]))
    yield f"trained    {trained[-1]['step']} of {steps} steps: train/loss {losses}"
    evaluated = [record for record in records if "train/loss" not in record]
    shown = (f"{name} {value:.4g}" for name, value in (evaluated or [{}])[0].items() if name.startswith("eval/"))
    yield f"evaluated  {', '.join(shown) or 'nothing: the data hook returns no evaluation set'}"
    first, *others = run_dir.committed_steps()
    size = sum(path.stat().st_size for path in (run_dir.checkpoints / f"step_{first}").rglob("*"))
    yield f"saved      step_{first} ({size / 1e6:.3g} MB)"
    if others:
        yield f"resumed    from step_{first}, and saved step_{others[-1]}"
