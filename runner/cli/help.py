"""The texts of `--help` that no single verb owns. Groups and options are found by listing folders."""

from pathlib import Path

from runner.cli.verb import load_verb, summary_of, verb_names
from runner.composition.recipe import options, shipped_root

__all__ = ["OVERRIDES", "group_options", "overview"]

OVERRIDES = """\
overrides:
  key=value        change a value: batch.items=128 optimizer.lr=1e-3
  group=option     choose an option: strategy=ddp tracker=[tensorboard,wandb]
  +key=value       add a key       ++key=value  add or change it       ~key  delete it"""
EXAMPLES = """\
examples:
  runner train digits
  runner train digits strategy=ddp hardware.processes=2 precision=bf16 run.steps=300
  runner train digits -m strategy=single,ddp optimizer.lr=1e-3,3e-3"""


def overview() -> str:
    """What `runner --help` prints: every verb with its summary."""
    found = {name: load_verb(name) for name in verb_names()}
    calls = {f"{name} {verb.USAGE}": summary_of(verb) for name, verb in found.items()}
    width = max(map(len, calls))
    lines = [f"  {call:<{width}}  {summary}".rstrip() for call, summary in calls.items()]
    general = [
        f"  {'<command> --help':<{width}}  Show the help of one command",
        f"  {'--version':<{width}}  Show the version",
    ]
    return "\n".join(["usage: runner <command> ...", "", "commands:", *lines, "", *general, "", EXAMPLES])


def group_options() -> str:
    """Every config group with its options, those of the working directory included."""
    groups = options([shipped_root() / "conf", Path.cwd() / "conf"])
    lines = [f"  {group:<16} {' | '.join(names)}" for group, names in groups.items()]
    return "\n".join(["groups and their options:", *lines])
