"""`runner train -m`: Hydra's sweeper and launcher choose the jobs; each job runs in a process tree of its own.

A job that fails is reported at once and the others continue. Jobs share no state: each starts as a fork of this
process, or as a new process where forking is not safe.
"""

import functools
import math
import sys
from itertools import islice
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from runner.cli.arguments import TrainArguments
from runner.cli.results import report
from runner.composition.compose import compose, from_hydra
from runner.composition.composed import Composed
from runner.composition.hydra_main import hydra_main, quoted
from runner.composition.origins import COMMAND_LINE
from runner.composition.recipe import Recipe, search_path
from runner.composition.secrets import secret_overrides
from runner.config.claim import claim, claim_named
from runner.config.masking import collected
from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.config.secret import is_reference
from runner.errors import Fault, SpecError
from runner.runs.approval import approve
from runner.runs.interrupts import interrupted_by_signals
from runner.runs.job import run_in_child

__all__ = ["sweep"]

TRIED_VALUES = 64
"""Values of one swept key that are composed before the sweep begins (40 ms each)."""
OBJECTIVES = ("eval/loss", "train/loss")
"""Metrics that a job returns to a sweeper that optimizes: the first of these that it measured."""


def sweep(recipe: Recipe, arguments: TrainArguments, *, command: list[str]) -> int:
    """Run every job, then print and write their results.

    Returns:
        0, or 1 if a job failed.

    Raises:
        SpecError: an override cannot be applied, in any of its values.
    """
    fixed, swept = _split(arguments.overrides)
    base = compose(recipe, fixed, config_dirs=arguments.config_dirs)
    _refuse_lock(recipe)
    approve(base, trust=arguments.trust)
    _check_values(base, fixed, swept, arguments)
    _refuse_literal_secrets(base)
    directory = _claimed(base)
    directories = (*search_path(recipe), *arguments.config_dirs)
    task = functools.partial(
        _job,
        recipe=recipe,
        directories=[str(path) for path in directories],
        command=command,
        trust=arguments.trust,
    )
    hydra_arguments = [
        "--multirun",
        f"hydra.sweep.dir={quoted(str(directory))}",
        *_job_name(recipe, fixed),
    ]
    try:
        with interrupted_by_signals(), secret_overrides(arguments.overrides) as overrides:
            code = hydra_main(
                recipe,
                [*hydra_arguments, *overrides],
                directories=directories,
                task=task,
            )
    finally:
        failed = report(directory)
        print(directory, flush=True)
    return 1 if failed or code else 0


def _job_name(recipe: Recipe, overrides: list[str]) -> list[str]:
    given = any(override.startswith("hydra.job.name=") for override in overrides)
    return [] if given else [f"hydra.job.name={quoted(recipe.name)}"]


def _split(overrides: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides with one value, and for each override with several the single ones that it stands for."""
    fixed, swept = [], {}
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            fixed.append(text)  # composing reports what is wrong with it
            continue
        if not override.is_sweep_override():
            fixed.append(text)
        elif override.is_discrete_sweep():
            key = override.get_key_element()
            swept[text] = [f"{key}={value}" for value in islice(override.sweep_string_iterator(), TRIED_VALUES)]
    return fixed, swept


def _check_values(
    base: Composed,
    fixed: list[str],
    swept: dict[str, list[str]],
    arguments: TrainArguments,
) -> None:
    faults = list(base.faults)
    for choices in swept.values():
        for choice in choices:
            tried = compose(base.recipe, [*fixed, choice], config_dirs=arguments.config_dirs)
            faults += [fault for fault in tried.faults if fault not in faults]
    run = base.config.get("run")
    if isinstance(run, dict) and run.get("dir") is not None:
        rule = f"{run['dir']!r} names the directory of one run, but a sweep has many. Use sweep.dir, or null."
        faults.append(Fault(key="run.dir", message=rule, origin=base.origins.origin("run.dir")))
    if faults:
        raise SpecError(*faults)


def _refuse_lock(recipe: Recipe) -> None:
    if recipe.locks is not None:
        rule = f"a sweep (-m) varies values, and {recipe.path} is locked. Sweep its recipe: {recipe.locks.reference}"
        raise SpecError(Fault(key="lock", message=rule))


def _refuse_literal_secrets(base: Composed) -> None:
    """Hydra writes the composed configuration of a sweep, multirun.yaml, as it stands in the files."""
    faults = [
        Fault(
            key=key,
            message=f"a sweep would write this secret into a file. Use {key}: ${{oc.env:NAME}}",
            origin=one.source,
        )
        for key, one in collected(base.config).items()
        if not is_reference(one.source) and one.source != COMMAND_LINE
    ]
    if faults:
        raise SpecError(*faults)


def _claimed(base: Composed) -> Path:
    section = base.config.get("sweep")
    named = section.get("dir") if isinstance(section, dict) else None
    if named is not None:
        return claim_named(Path(str(named)).absolute(), key="sweep.dir")
    return claim(Path.cwd() / "multirun" / base.name, key="sweep.dir")


def _job(config: DictConfig, *, recipe: Recipe, directories: list[str], command: list[str], trust: bool) -> float:
    """One job, as Hydra's launcher calls it, perhaps in another process or on another machine."""
    hydra = HydraConfig.instance().cfg.hydra  # type: ignore[union-attr]
    run_dir = RunDir(Path(hydra.runtime.output_dir))
    composed = from_hydra(
        recipe,
        config,
        hydra,
        directories=[Path(path) for path in directories],
    )
    try:
        approve(composed, trust=trust)
        spec = composed.read()
        _refuse_nodes(spec)
    except SpecError as wrong:
        run_dir.write_status("failed", step=0, metrics={})
        print(
            f"job {run_dir.path.name} has an invalid declaration:\n{wrong}",
            file=sys.stderr,
            flush=True,
        )
        return math.nan
    for one in composed.left_out:
        print(f"job {run_dir.path.name}: {one}", file=sys.stderr, flush=True)
    code = run_in_child(run_dir, composed.stored(), spec, command=command)
    if code:
        print(
            f"job {run_dir.path.name} failed (exit code {code}): {run_dir.path}",
            file=sys.stderr,
            flush=True,
        )
        if run_dir.read_status()["state"] in ("queued", "running"):
            run_dir.write_state("failed")
        return math.nan
    metrics = run_dir.read_status()["metrics"]
    return next((metrics[name] for name in OBJECTIVES if name in metrics), math.nan)


def _refuse_nodes(spec: RunSpec) -> None:
    if spec.launch.nodes > 1:
        rule = f"a sweep (-m) runs its jobs on one machine, not on {spec.launch.nodes}. Train each value separately."
        raise SpecError(Fault(key="launch.nodes", message=rule))
