"""`runner train -m`: Hydra's sweeper and launcher choose the jobs; each job runs in a process tree of its own.

A job that fails is reported at once and the others continue. Jobs share no state: each starts as a fork of this
process, or as a new process where forking is not safe.
"""

import contextlib
import functools
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from runner import terminal
from runner.cli import attempt
from runner.cli.approval import approve
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
from runner.config.run_lock import hold
from runner.config.run_spec import RunSpec
from runner.config.secret import Secret, is_reference
from runner.errors import Fault, SpecError
from runner.world.fork import can_fork_ranks
from runner.world.parent import end_with_parent
from runner.world.stop import ENDING_SIGNALS

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
        with _interrupted_by_signals(), secret_overrides(arguments.overrides) as overrides:
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


class _Stopped(KeyboardInterrupt):
    """A signal that ends the sweep, and its job as it would end a run."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Let every signal that stops a run interrupt the block; those that are ignored stay so."""

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        raise _Stopped(signum)

    before = {
        number: signal.getsignal(number) for number in ENDING_SIGNALS if signal.getsignal(number) != signal.SIG_IGN
    }
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    with hold(run_dir):  # the process of the job takes it over
        spec_path = attempt.begin(run_dir, composed.stored(), spec, command=command)
    code = _run_in_child(spec_path, spec)
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


def _run_in_child(spec_path: Path, spec: RunSpec) -> int:
    """Run in a process tree of its own, which an interrupt ends as a whole; a fork starts within milliseconds."""
    if spec.hardware.can_fork:
        import_module("runner.worker")  # torch and the engine: once here instead of once in every job
    forks = can_fork_ranks(spec.hardware)
    context = multiprocessing.get_context("fork") if forks else multiprocessing.get_context("spawn")
    process = context.Process(target=_be_job, args=(str(spec_path), os.getpid(), dict(spec.secrets)))
    sys.stdout.flush()
    sys.stderr.flush()
    process.start()
    try:
        process.join()
    except KeyboardInterrupt as stopped:
        _stop(process, stopped.number if isinstance(stopped, _Stopped) else signal.SIGINT)
        raise
    return process.exitcode or 0


def _stop(process: BaseProcess, number: int) -> None:
    """Pass a signal on, wait until the job has ended in its own time, and kill what is left of its process group.

    Another signal meanwhile kills it at once.
    """
    assert process.pid is not None
    try:
        os.kill(process.pid, number)
        process.join()
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing is left
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


def _be_job(spec_path: str, sweep_pid: int, secrets: Mapping[str, Secret]) -> None:
    # A process group of its own: Ctrl-C reaches only the sweep, which then interrupts this job exactly once.
    os.setpgrp()
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    terminal.protect()
    # A sweep that was killed: its job ends its step and saves a checkpoint, as it does when it is asked to stop.
    end_with_parent(sweep_pid, signal.SIGTERM)
    attempt.run_sweep_job(Path(spec_path), secrets)
