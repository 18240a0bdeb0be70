"""`runner init`: asks, writes a project, and says what to type next."""

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path

from runner.errors import Fault, SpecError
from runner.new_project.answers import Answers, ask, defaults_for, faults_of
from runner.new_project.write import check_target, write

__all__ = ["init"]


def init(found: argparse.Namespace) -> int:
    """Write the project.

    Raises:
        SpecError: the directory is not empty, an answer is wrong, or nobody is there to be asked.
        DiskError: a file cannot be written.
    """
    check_target(found.dir)
    given = {field.name: vars(found)[field.name] for field in fields(Answers) if vars(found)[field.name] is not None}
    proposed = defaults_for(found.dir, name=found.name, processes=found.processes)
    answers = replace(proposed, **given)
    if not found.yes:
        answers = _ask(answers, set(given))
    if wrong := list(faults_of(answers)):
        raise SpecError(*wrong)
    for name in write(found.dir, answers):
        print(f"wrote {found.dir / name}")
    print(_next_steps(found.dir, answers.name))
    return 0


def _ask(answers: Answers, given: set[str]) -> Answers:
    if not sys.stdin.isatty():
        missing = [f"--{field.name}" for field in fields(Answers) if field.name not in given]
        rule = "must be given, since stdin is no terminal on which to ask. Give as well what differs from the defaults"
        raise SpecError(Fault(key="--yes", message=f"{rule}: {', '.join(missing)}"))
    try:
        return ask(answers, given, input, print)
    except EOFError:
        print()
        raise KeyboardInterrupt from None


def _next_steps(directory: Path, name: str) -> str:
    move = [] if directory == Path() else [f"  cd {directory}"]
    return "\n".join(["", "next:", *move, f"  runner train {name}", f"  runner check {name}"])
