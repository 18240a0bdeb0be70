"""How long a background save blocks training under each strategy, compared with a copy of a rank's state.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint_blocked.py --dir /dev/shm           # all strategies, six minutes
    OMP_NUM_THREADS=1 python benchmarks/checkpoint_blocked.py --dir /dev/shm ddp fsdp  # some

Two processes train a model of 84 million weights with AdamW for one step, wait for three seconds, in which a run would
continue training, and then alternate saves with checkpoint.asynchronous=true and copies. After a save, a step is taken,
during whose forward and backward the copy of the state is finished. How long a save blocks is the time of `save`, with
everything that the strategy does to name and partition its state, and of the wait before the update. A copy is of every
tensor on the rank, on both ranks at once. The first copy goes into fresh memory, in another pair of processes than the
first save; later copies reuse the memory of the last. Prints the slower rank's medians and their ratio, and by how much
the forward and backward beside the copy are longer than without: on as many cores as processes, by the copy's CPU time.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from checkpoint_ranks import RANKS, clean, in_ranks, local
from torch import Tensor

from runner.composition.compose import compose
from runner.composition.find_recipe import find
from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.data.source import endless
from runner.engine.session import Session, open_session
from runner.storage.names import to_names
from runner.strategy.deepspeed.flat_range import FlatRange
from runner.world.group import GroupWorld
from runner.world.stop import StopRequest

RECIPE = Path(__file__).with_name("mlp.yaml")
OPTIONS = Path(__file__).parent.parent / "conf" / "strategy"
STRATEGIES = sorted(path.stem for path in OPTIONS.glob("*.yaml") if path.stem != "single")
SAVES = 5
PAUSE_S = 3.0
Times = dict[str, list[float]]


def spec_of(strategy: str) -> RunSpec:
    """The spec of the measured run."""
    overrides = [
        f"strategy={strategy}", "hardware=cpu", "hardware.processes=2", "model._target_=mlp.build_tower",
        "~model.hidden", "optimizer=adamw", "optimizer.lr=1e-6", "checkpoint=sharded", "checkpoint.asynchronous=true",
        "checkpoint.keep_last=1",
    ]  # fmt: skip
    return compose(find(str(RECIPE)), overrides).read()


@contextmanager
def session_of(strategy: str, directory: Path, world: GroupWorld) -> Iterator[Session]:
    """Open a run and take its first step."""
    with open_session(spec_of(strategy), RunDir(directory), world, StopRequest()) as session:
        session.take_step(next(iter(session.training.source)), measure=False)
        session.checkpointer.poll(session.training.state_dict)  # as the loop does after its first step
        time.sleep(PAUSE_S)
        yield session


def held(session: Session) -> list[Tensor]:
    """This rank's part of the state, not copied."""
    tensors = to_names(session.training.state_dict()).values()
    return [tensor._elements() if isinstance(tensor, FlatRange) else local(tensor) for tensor in tensors]


def blocked(world: GroupWorld, strategy: str, first: str, directory: Path) -> Times:
    """The slower rank's seconds of saves and copies in alternation; the one named first begins."""
    directory.mkdir(exist_ok=True)
    with session_of(strategy, directory, world) as session:
        times = alternate(session, world, first)
    world.barrier()
    clean(world, directory)
    return times


def alternate(session: Session, world: GroupWorld, first: str) -> Times:
    """The slower rank's seconds of saves and copies; the one named first begins."""
    memory: list[Tensor] = []

    def copy() -> None:
        tensors = held(session)
        if not memory:  # one new block from the system: a clone might reuse memory that the build has freed
            memory.append(torch.empty(sum(tensor.nbytes for tensor in tensors), dtype=torch.uint8))
        start = 0
        for tensor in tensors:
            memory[0][start : start + tensor.nbytes].copy_(tensor.reshape(-1).view(torch.uint8))
            start += tensor.nbytes

    def save() -> None:
        training = session.training
        session.checkpointer.save(training.state_dict(), progress=training.progress, metrics={})

    batches = next(endless(session.training.source))
    forward = partial(session.trainable.forward_backward, batches)
    finish = partial(session.checkpointer.finish_copy, after_forward=True)
    times: Times = {"save": [], "copy": [], "beside": [], "alone": []}
    for _ in range(SAVES):
        for kind in ("save", "copy") if first == "save" else ("copy", "save"):
            session.checkpointer.wait()  # what was under way neither counts nor disturbs
            if kind == "save":
                saving, beside, finishing = in_turn(world, save, forward, finish)
                times["save"].append(saving + finishing)
                times["beside"].append(beside)
            else:
                copying, alone = in_turn(world, copy, forward)
                times["copy"].append(copying)
                times["alone"].append(alone)
            session.trainable.update(measure=False)
            session.training.advance()
    session.checkpointer.wait()
    return times


def in_turn(world: GroupWorld, *actions: Callable[[], object]) -> list[float]:
    """Seconds of each action in turn on the slower rank; all start together."""
    taken: list[float] = []
    world.barrier()
    for action in actions:
        begin = time.perf_counter()
        action()
        taken.append(time.perf_counter() - begin)
    return [max(of_ranks) for of_ranks in zip(*world.gather_objects(taken), strict=True)]


def measure(strategy: str, rounds: int, where: Path) -> None:
    """Run processes in turn, in which either the save or the copy is the first to touch fresh memory."""
    firsts: Times = {"save": [], "copy": []}
    later: Times = {"save": [], "copy": [], "beside": [], "alone": []}
    axes = spec_of(strategy).strategy.axes(RANKS)
    for _ in range(rounds):
        for first in ("save", "copy"):
            times = in_ranks(blocked, strategy, first, where / first, axes=axes)
            firsts[first].append(times[first][0])
            for kind in later:
                later[kind] += times[kind][1:]
    for name, found in (("first", firsts), ("later", later)):
        save_s, copy_s = (statistics.median(found[kind]) for kind in ("save", "copy"))
        print(f"{strategy:18}{name}   save {save_s:6.3f} s   copy {copy_s:6.3f} s   ratio {save_s / copy_s:5.2f}")
    beside_s, alone_s = (statistics.median(later[kind]) for kind in ("beside", "alone"))
    print(f"{strategy:18}forward and backward beside a copy {beside_s:6.3f} s, alone {alone_s:6.3f} s")


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("strategies", nargs="*", default=STRATEGIES, help=", ".join(STRATEGIES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dir", default=None, help="where to write; default: the temporary directory")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.dir) as where:
        for strategy in options.strategies:
            measure(strategy, options.rounds, Path(where))


if __name__ == "__main__":
    main()
