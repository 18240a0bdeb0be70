"""Kill a saving process by SIGKILL, many times; after each, the newest commit must load. Prints how often it killed.

    python killed.py each_operation|replacing|background|random DIRECTORY

A child is forked for each save, so that torch is imported once.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import runner.checkpoint.rank_files  # imported before the forks
import runner.storage.read  # noqa: F401
from runner.checkpoint.retention import Retention
from runner.checkpoint.sharded import Sharded
from runner.protocols import Progress, State
from runner.storage.names import to_names
from runner.world.solo import SoloWorld
from tests.storage.states import open_latest, state_of

BASE = torch.arange(100_000.0)
WORLD = SoloWorld(torch.device("cpu"))
OPERATIONS = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}


def state_at(value: int) -> State[torch.Tensor]:
    """2 MB that are full of one number, and frozen parameters that never change."""
    tensors = {"model.w": torch.full((500_000,), float(value)), "model.n": torch.tensor(value)}
    state = state_of({**tensors, "model.base": torch.zeros(BASE.shape) if value < 0 else BASE}, {"value": value})
    state.frozen = {"model": {"base"}}
    return state


def newest_value(run_dir: Path) -> int:
    """Load the newest commit as a resumed run would; all of it must be of one save."""
    Sharded(retention=Retention(keep_last=1)).open(run_dir, WORLD)
    saved = open_latest(run_dir, WORLD)
    state = state_at(-1)
    saved.read(state)
    value = int(state.values["value"])
    assert torch.equal(to_names(state)["model.w"], torch.full((500_000,), float(value)))
    assert int(to_names(state)["model.n"]) == value
    assert torch.equal(to_names(state)["model.base"], BASE)
    assert [one.name for one in saved.path.parent.iterdir() if "." in one.name] == [], "leftovers"
    return value


def in_child(action: Callable[[], None]) -> int:
    """Fork, act, leave; returns the child's process id."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(0)
    return pid


def save(run_dir: Path, *, step: int, value: int, asynchronous: bool = False) -> None:
    """One save of a run that keeps one checkpoint."""
    checkpointer = Sharded(retention=Retention(keep_last=1), asynchronous=asynchronous).open(run_dir, WORLD)
    checkpointer.save(state_at(value), progress=Progress(step=step, position=0), metrics={})
    checkpointer.wait()


def die_at(operation: int) -> None:
    """Send SIGKILL to this process just before its so-manieth operation on the file system."""
    left = [operation]

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event in OPERATIONS:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def kill_at_each_operation(run_dir: Path, *, replacing: bool, asynchronous: bool) -> int:
    """Kill before the first operation of a save, then before the second, and so on until a save survives."""
    operation = 0
    while True:
        operation += 1
        before, after = 2 * operation, 2 * operation + 1
        save(run_dir, step=1 if replacing else before, value=before)

        def attempt(operation: int = operation, value: int = after) -> None:
            die_at(operation)
            save(run_dir, step=1 if replacing else value, value=value, asynchronous=asynchronous)

        _, status = os.waitpid(in_child(attempt), 0)
        found = newest_value(run_dir)
        assert found in (before, after), (found, before, after)
        if not os.WIFSIGNALED(status):
            assert found == after
            return operation - 1


def kill_at_random(run_dir: Path) -> int:
    """Twenty times: a child saves step after step until it is killed."""
    chance = random.Random(0)
    committed = 1
    save(run_dir, step=1, value=1)
    for _ in range(20):

        def attempt(begin: int = committed) -> None:
            for value in range(begin + 1, begin + 1000):
                save(run_dir, step=value, value=value)

        pid = in_child(attempt)
        time.sleep(chance.uniform(0.0, 0.15))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = newest_value(run_dir)
        assert found >= committed, (found, committed)
        committed = found
    print(20, f"commits: {committed}")
    return 20


if __name__ == "__main__":
    when, directory = sys.argv[1], Path(sys.argv[2])
    if when == "random":
        kill_at_random(directory)
    else:
        print(kill_at_each_operation(directory, replacing=when == "replacing", asynchronous=when == "background"))
