"""SIGKILL at random moments, to random processes of a run, again and again: the run ends as one that nobody disturbed.

What every rank does is read from the memory that it shares with its launcher, so that a kill can be aimed.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import closing, suppress
from enum import Enum
from pathlib import Path

import psutil
import pytest

from runner.world.activity import SLOT, SLOT_BYTES, Phase
from tests.conftest import Ended, Started, Zygote
from tests.faults.directory import Directory
from tests.faults.signals_tree import children, tree
from tests.parity.options import placed
from tests.parity.test_resume import NOISE, assert_same_run

STEPS = 40
LENGTH = (f"run.steps={STEPS}", "checkpoint.every_steps=3", "checkpoint.keep_last=2", "eval.every_steps=5")
WORDS = ("points", "run.dir=run", *NOISE, *LENGTH)
SAVING = {"sharded": (), "asynchronous": ("checkpoint.asynchronous=true",), "full": ("checkpoint=full",)}
STRATEGIES = ("single", "ddp", "fsdp", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3")
ALWAYS = [("ddp", "asynchronous", 2, 2), ("deepspeed_zero2", "sharded", 1, 3)]
EVERY = [(strategy, saving) for strategy in STRATEGIES for saving in SAVING]
PATIENCE_S = 150
PATIENCE_STEPS = 10
"""So many steps after the chosen one, the kill comes wherever the run is: moments are short and may be missed."""


class Moment(Enum):
    """What the run does when it is struck."""

    START = "start"
    STEP = "step"
    EVALUATION = "evaluation"
    SAVE = "save"


class Target(Enum):
    """Who is killed."""

    TREE = "tree"
    LAUNCHER = "launcher"
    RANK = "rank"


class Attempt:
    """A command under way, as seen from outside."""

    def __init__(self, directory: Directory, started: Started, *, num_ranks: int) -> None:
        self.started = started
        self._directory = directory
        self._num_ranks = num_ranks
        self._table = -1
        self._ended = False

    def wait_for(self, moment: Moment, *, step: int, rank: int) -> None:
        """Until this rank is there, in this step or a later one."""
        deadline = time.monotonic() + PATIENCE_S
        self._open(deadline)
        while moment is not Moment.START:
            reached, phase = self.standing(rank)
            if reached >= step + PATIENCE_STEPS or (reached >= step and self._is_at(moment, phase)):
                return
            self._check(deadline, f"{moment} after step {step}, but {phase} in step {reached}")
            time.sleep(0.0005)

    def standing(self, rank: int) -> tuple[int, Phase]:
        """Step and phase of a rank, also once it is dead."""
        step, phase, _ = SLOT.unpack(os.pread(self._table, SLOT.size, SLOT_BYTES * (1 + rank)))
        return step, Phase(phase)

    def kill(self, target: Target, *, rank: int) -> None:
        """SIGKILL: all processes of the command at once, its first one, or one of its ranks."""
        pid = self.started.pid
        ranks = children(pid)[: self._num_ranks] if self._num_ranks > 1 else [pid]
        struck = {Target.TREE: tree(pid), Target.LAUNCHER: [pid], Target.RANK: [ranks[rank]]}[target]
        for one in struck:
            os.kill(one, signal.SIGKILL)

    def end(self, timeout_s: float) -> Ended:
        """Its end."""
        self._ended = True
        return self.started.wait(timeout_s)

    def close(self) -> None:
        """Kill what still runs, and close what the standings are read from."""
        if not self._ended:
            os.kill(self.started.pid, signal.SIGKILL)
            self.end(30)
        if self._table >= 0:
            os.close(self._table)

    def _open(self, deadline: float) -> None:
        """Open the memory of the ranks, once they have been started."""
        descriptors = Path(f"/proc/{self.started.pid}/fd")
        while self._table < 0:
            with suppress(FileNotFoundError):  # it opens and closes others meanwhile
                for descriptor in descriptors.iterdir():
                    if "memfd:runner-activity" in str(descriptor.readlink()):
                        self._table = os.open(descriptor, os.O_RDONLY)
                        break
            self._check(deadline, "the ranks' shared memory")
        while self._num_ranks > 1 and len(children(self.started.pid)) < self._num_ranks:
            self._check(deadline, f"{self._num_ranks} ranks")

    def _is_at(self, moment: Moment, phase: Phase) -> bool:
        if moment is Moment.SAVE:  # one in the background is no phase of the rank
            return any(self._directory.run_dir.checkpoints.glob("step_*.partial-*"))
        return phase is {Moment.STEP: Phase.STEP, Moment.EVALUATION: Phase.EVALUATION}[moment]

    def _check(self, deadline: float, what: str) -> None:
        if psutil.Process(self.started.pid).status() == psutil.STATUS_ZOMBIE:
            pytest.fail(f"ended before {what}:\n{self.started.stderr.read_text()}")
        if time.monotonic() > deadline:
            pytest.fail(f"no {what} within {PATIENCE_S} s:\n{self.started.stderr.read_text()}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Callable[..., Ended]:
    """The run with these words, which nobody kills."""
    made: dict[tuple[str, ...], Ended] = {}

    def make(*words: str) -> Ended:
        if words not in made:
            made[words] = Directory(tmp_path_factory.mktemp("undisturbed"), zygote).run(
                "train", *words, timeout_s=PATIENCE_S
            )
        return made[words]

    return make


def kills(chance: random.Random, number: int, *, num_ranks: int) -> list[tuple[Moment, Target, int, int]]:
    """So many: at each moment in turn, of whom, of which rank, and from which step on."""
    moments, targets = [[*chance.sample([*kind], len(kind))] for kind in (Moment, Target)]
    span = (STEPS - PATIENCE_STEPS - 5) / number
    return [
        (
            moments[index % len(moments)],
            targets[index % len(targets)],
            chance.randrange(num_ranks),
            round(span * (index + chance.random())) + 1,
        )
        for index in range(number)
    ]


@pytest.mark.timeout(900)  # six attempts with DeepSpeed, perhaps on a busy machine
@pytest.mark.fault(
    "SIGKILL at any moment: to all processes of a run, its launcher or a rank; with every strategy, and when resumed",
    "a resume ends with every bit of an undisturbed run",
)
@pytest.mark.parametrize(
    ("strategy", "saving", "number", "seed"),
    [
        *ALWAYS,
        *(pytest.param(*case, 4, 4, marks=pytest.mark.exhaustive) for case in EVERY),
    ],
)
def test_kills_lose_nothing_but_time(
    tmp_path: Path,
    zygote: Zygote,
    undisturbed: Callable[..., Ended],
    strategy: str,
    saving: str,
    number: int,
    seed: int,
) -> None:
    words = (*WORDS, *placed(strategy, 2), *SAVING[saving])
    expected, directory = undisturbed(*words), Directory(tmp_path, zygote)
    run_dir, argv = directory.run_dir, ("train", *words)
    chance, committed = random.Random(f"{strategy} {saving} {seed}"), 0
    num_ranks = 1 if strategy == "single" else 2
    for moment, target, rank, step in kills(chance, number, num_ranks=num_ranks):
        with closing(Attempt(directory, directory.start(*argv), num_ranks=num_ranks)) as attempt:
            attempt.wait_for(moment, step=step, rank=rank)
            time.sleep(chance.uniform(0, 0.3 if moment is Moment.START else 0.003))
            attempt.kill(target, rank=rank)
            ended = attempt.end(60)
            reached, phase = attempt.standing(rank)
        print(f"{strategy} {saving}: {target.value} killed for its {moment.value}, when {phase}, step {reached}")
        if target is Target.RANK and num_ranks > 1:
            assert (ended.code, run_dir.read_status()["state"]) == (1, "failed"), ended.stderr
            assert f"rank {rank} was killed by SIGKILL; the last recorded step is" in ended.stderr
        else:
            assert ended.code == -signal.SIGKILL, f"it had ended before it was killed:\n{ended.stderr}"
        directory.check_left()
        directory.check_newest_commit()
        newest = max(run_dir.committed_steps(), default=0)
        assert newest >= committed, f"{moment} of {target}: step_{committed} was committed, and now step_{newest} is"
        assert run_dir.read_status()["step"] >= newest
        committed = newest
        argv = ("resume", "run")
    assert_same_run(directory.run(*argv, timeout_s=PATIENCE_S), expected, STEPS)
    assert run_dir.read_status()["state"] == "done"
    directory.check_no_partial()
