"""What a new project is asked, and what holds of the answers."""

import keyword
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import final

from runner.composition.recipe import options, shipped_root
from runner.config.nearest import did_you_mean, listed
from runner.errors import Fault

__all__ = ["Answers", "ask", "defaults_for", "faults_of"]

NO_TRACKER = "none"
SEVERAL = "ddp"
"""The strategy that is proposed for several processes."""


@final
@dataclass(frozen=True, kw_only=True)
class Answers:
    """What differs between one new project and another."""

    name: str
    """Of the recipe, and of the module with its hooks."""
    processes: int
    strategy: str
    precision: str
    tracker: str
    """`none` = metrics.jsonl only."""


QUESTIONS = {
    "name": "name of the recipe",
    "processes": "processes on this machine, one for each device",
    "strategy": "strategy: how model and optimizer are distributed",
    "precision": "precision: dtypes of weights and computation",
    "tracker": "tracker: where metrics are logged beside metrics.jsonl",
}


def defaults_for(directory: Path, *, name: str | None, processes: int | None) -> Answers:
    """The answers that are proposed.

    Args:
        name: the name, if it is known already; otherwise it is that of the directory.
        processes: the number of processes, if it is known already; otherwise one.
    """
    proposed = re.sub(r"\W+", "_", directory.absolute().name.lower()).strip("_")
    usable = proposed if proposed and not list(_name_faults(proposed)) else "my_project"
    count = processes or 1
    strategy = SEVERAL if count > 1 else "single"
    return Answers(name=name or usable, processes=count, strategy=strategy, precision="fp32", tracker=NO_TRACKER)


def faults_of(answers: Answers) -> Iterator[Fault]:
    """What is wrong with answers on their own; what they mean together, the declaration's own check finds."""
    yield from _name_faults(answers.name)
    if answers.processes < 1:
        yield Fault(key="--processes", message=f"{answers.processes} must be at least 1.")
    for group in ("strategy", "precision", "tracker"):
        chosen, known = str(vars(answers)[group]), choices(group)
        if chosen not in known:
            rule = f"there is no option {chosen!r}.{did_you_mean(chosen, known)} There are: {listed(known)}."
            yield Fault(key=f"--{group}", message=rule)


def choices(group: str) -> list[str]:
    """The options of a group that a new project can choose."""
    found = options([shipped_root() / "conf"]).get(group, [])
    return [NO_TRACKER, *found] if group == "tracker" else found


def ask(proposed: Answers, given: set[str], question: Callable[[str], str], tell: Callable[[str], None]) -> Answers:
    """Ask for what is not given yet; each question again until its answer can be right.

    Args:
        proposed: what an empty answer means.
        given: the names of answers that need not be asked.
        question: shows a prompt and returns a line; raises EOFError or KeyboardInterrupt.
        tell: shows a line.
    """
    answers = proposed
    for name in (field.name for field in fields(Answers) if field.name not in given):
        if name == "strategy" and answers.processes > 1:
            answers = replace(answers, strategy=SEVERAL)
        answers = _asked(answers, name, question, tell)
    return answers


def _asked(answers: Answers, name: str, question: Callable[[str], str], tell: Callable[[str], None]) -> Answers:
    known = f" ({', '.join(choices(name))})" if choices(name) else ""
    while True:
        text = question(f"{QUESTIONS[name]}{known} [{vars(answers)[name]}]: ").strip()
        if not text:
            return answers
        if name == "processes" and not text.isdecimal():
            tell(f"{text!r} must be a whole number.")
            continue
        changed = Answers(**{**vars(answers), name: int(text) if name == "processes" else text})
        wrong = [fault.message for fault in faults_of(changed) if fault.key == f"--{name}"]
        if not wrong:
            return changed
        tell(wrong[0])


def _name_faults(name: str) -> Iterator[Fault]:
    if not name.isidentifier() or keyword.iskeyword(name) or not name.isascii():
        rule = f"{name!r} names a Python module, too: use letters, digits and underscores, with a letter first."
        yield Fault(key="--name", message=rule)
    elif any((shipped_root() / folder / f"{name}.yaml").exists() for folder in ("recipes", "conf")):
        yield Fault(key="--name", message=f"{name!r} comes with the runner, and would be hidden. Choose another name.")
