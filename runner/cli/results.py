"""The results of a sweep: a table on the terminal, and results.json in its directory."""

import json
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from runner import durable
from runner.config.damage import Damaged, read_text, warn
from runner.config.masking import shown_override
from runner.config.run_dir import RunDir
from runner.config.store import load_yaml

__all__ = ["report"]


def report(directory: Path) -> int:
    """Write and print the results of all jobs.

    Returns:
        How many of them failed.
    """
    jobs = [_job(path) for path in _job_dirs(directory)]
    durable.replace(directory / "results.json", json.dumps(jobs, indent=2) + "\n")
    console = Console()
    # A log file has no width, so nothing is cut there.
    (console if console.is_terminal else Console(width=1000)).print(_table(jobs))
    return sum(job["state"] == "failed" for job in jobs)


def _job_dirs(directory: Path) -> list[Path]:
    numbered = [path for path in directory.iterdir() if path.is_dir() and (path / ".hydra").is_dir()]
    return sorted(
        numbered,
        key=lambda path: (
            not path.name.isdigit(),
            int(path.name) if path.name.isdigit() else 0,
        ),
    )


def _job(path: Path) -> dict[str, Any]:
    run_dir = RunDir(path)
    return {
        "job": int(path.name) if path.name.isdigit() else path.name,
        "overrides": _overrides(path / ".hydra" / "overrides.yaml"),
        **run_dir.read_status(),
        "dir": str(path),
    }


def _overrides(path: Path) -> list[str]:
    try:
        found = load_yaml(read_text(path))
    except FileNotFoundError:
        return []
    except (Damaged, yaml.YAMLError) as error:
        warn(f"{path} cannot be read ({' '.join(str(error).split())}): the table lacks the overrides of that job.")
        return []
    return [shown_override(str(override)) for override in found] if isinstance(found, list) else []


def _table(jobs: list[dict[str, Any]]) -> Table:
    """A column for each overridden key and each metric of evaluation (of training, if nothing was evaluated)."""
    given = [dict(override.partition("=")[::2] for override in job["overrides"]) for job in jobs]
    keys = list(dict.fromkeys(key for overrides in given for key in overrides))
    names = sorted({name for job in jobs for name in job["metrics"]})
    names = [name for name in names if name.startswith("eval/")] or names
    table = Table("job", *keys, "state", "step", *names)
    for job, overrides in zip(jobs, given, strict=True):
        values = [f"{job['metrics'][name]:.5g}" if name in job["metrics"] else "" for name in names]
        words = [overrides.get(key, "") for key in keys]
        table.add_row(str(job["job"]), *words, job["state"], str(job["step"]), *values)
    return table
