"""Two ranks: what test_two_ranks.py runs. Raises if a promise is broken.

    MASTER_ADDR=… MASTER_PORT=… python ranks.py SCENARIO DIRECTORY

The ranks are forked, so that torch is imported once.
"""

import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from runner.checkpoint.full import Full
from runner.checkpoint.sharded import Sharded, ShardedCheckpointer
from runner.errors import CheckpointError
from runner.protocols import Axes, Axis, Progress, State
from runner.storage.integrity import verify_everything
from runner.storage.names import to_names
from runner.world.group import GroupWorld, join_group
from tests.storage.states import latest, open_latest, opened, state_of

PROGRESS = Progress(step=5, position=50)
CPU = torch.device("cpu")
WORLD_SIZE = 2
AXES = Axes(names=(Axis.SHARD,), sizes=(WORLD_SIZE,), data=(Axis.SHARD,))


def weights() -> dict[str, Tensor]:
    """Known numbers; 5 rows over 2 ranks are 3 and 2, one row is 1 and none."""
    shapes = {"0.weight": (5, 3), "0.bias": (5,), "1.weight": (1, 5), "1.bias": (1,)}
    return {name: torch.arange(1.0, 1.0 + torch.Size(shape).numel()).reshape(shape) for name, shape in shapes.items()}


def sharded_model(world: GroupWorld) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
    fully_shard(model, mesh=world.mesh())
    return model


def save_sharded(world: GroupWorld, directory: Path) -> None:
    """Each rank its share."""
    checkpointer = Sharded().open(directory, world)
    checkpointer.save(known_state(world), progress=PROGRESS, metrics={})
    assert latest(directory, world) == directory / "checkpoints/step_5"


def save_full(world: GroupWorld, directory: Path) -> None:
    """All in one file."""
    checkpointer = Full().open(directory, world)
    checkpointer.save(known_state(world), progress=PROGRESS, metrics={})
    assert latest(directory, world) == directory / "checkpoints/step_5"


def save_later(world: GroupWorld, directory: Path) -> None:
    """From copies: the state is changed at once, and the main thread agrees on other things meanwhile."""
    checkpointer = Sharded(asynchronous=True).open(directory, world)
    state = known_state(world)
    checkpointer.save(state, progress=PROGRESS, metrics={})
    with torch.no_grad():
        for tensor in to_names(state).values():
            (tensor.to_local() if isinstance(tensor, DTensor) else tensor).zero_()
    state.values["epoch"] = 3
    assert [world.gather_objects((world.rank, n)) for n in range(50)] == [[(0, n), (1, n)] for n in range(50)]
    checkpointer.wait()


def changes_between_saves(world: GroupWorld, directory: Path) -> None:
    """What is written where is remembered from save to save, until something changes, be it on one rank alone."""
    checkpointer = Sharded(asynchronous=directory.name == "later").open(directory, world)
    states = [known_state(world) for _ in range(4)]
    for number, state in enumerate(states):
        grown = world.rank == 1 and number >= 2
        state.rng[world.rank]["x"] = torch.full((5 if grown else 3,), number)
    states[3].callbacks["more"] = {"x": torch.full((2, 2), 7.0)}
    with torch.no_grad():
        for tensor in to_names(states[1]).values():  # as planned, with other contents
            (tensor.to_local() if isinstance(tensor, DTensor) else tensor).fill_(9)
    for number, state in enumerate(states):
        checkpointer.save(state, progress=Progress(step=number + 1, position=0), metrics={})
        checkpointer.wait()
        saved = open_latest(directory, world)
        assert saved.path == directory / f"checkpoints/step_{number + 1}"
        tensors = to_names(state)
        read = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        saved.read(state_of(read))
        assert all(torch.equal(local(read[name]), local(tensor)) for name, tensor in tensors.items())
        assert ("callback.more.x" in to_names(saved.stored)) == (number == 3)


def local(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def later_fails_on_one(world: GroupWorld, directory: Path) -> None:
    """What the disk of one rank refused, both hear by and by; the commit before stands."""
    checkpointer = Sharded(asynchronous=True).open(directory, world)
    small = state_of({"model.w": torch.ones(2)})
    checkpointer.save(small, progress=PROGRESS, metrics={})
    large = state_of({f"rng.rank_{world.rank}.x": torch.ones(500_000 if world.rank else 1)})  # 2 MB on rank 1
    checkpointer.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    checkpointer.save(large, progress=Progress(step=6, position=60), metrics={})
    message = failure(lambda: poll_until_it_fails(checkpointer, large))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large. Free space there" in message, message
    assert latest(directory, world) == directory / "checkpoints/step_5"
    checkpointer.save(small, progress=Progress(step=7, position=70), metrics={})
    checkpointer.wait()
    assert latest(directory, world) == directory / "checkpoints/step_7"


def poll_until_it_fails(checkpointer: ShardedCheckpointer, state: State[Tensor]) -> None:
    """As a loop polls; the group's own timeout ends it."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        checkpointer.poll(lambda: state)
        time.sleep(0.01)


def frozen(world: GroupWorld, directory: Path) -> None:
    """Each rank links its shards of the frozen parameters, until one of them changes on one rank."""
    checkpointer = Sharded(asynchronous=directory.name == "later").open(directory, world)
    state = known_state(world)
    state.frozen = {"model": {"0.weight", "0.bias", "1.weight", "1.bias"}}
    name = f"rank_{world.rank}.frozen.safetensors"
    inodes = []
    for step in (1, 2, 3):
        if step == 3 and world.rank == 1:
            local(state.models["model"]["0.weight"])[-1, -1] += 1
        checkpointer.save(state, progress=Progress(step=step, position=0), metrics={})
        checkpointer.wait()
        inodes.append((directory / f"checkpoints/step_{step}" / name).stat().st_ino)
        verify_everything(directory / f"checkpoints/step_{step}")
        read = known_state(world)
        local(read.models["model"]["0.weight"]).zero_()
        open_latest(directory, world).read(read)
        assert torch.equal(local(read.models["model"]["0.weight"]), local(state.models["model"]["0.weight"]))
    assert inodes[0] == inodes[1]
    assert (inodes[1] == inodes[2]) == (world.rank == 0)


def known_state(world: GroupWorld) -> State[Tensor]:
    """FSDP2 shards, a replicated tensor and one that only this rank has."""
    model = sharded_model(world)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            whole, shard = weights()[name], parameter.data
            assert isinstance(shard, DTensor)
            rows = whole.chunk(world.size)
            shard.to_local().copy_(rows[world.rank] if world.rank < len(rows) else whole[:0])
    tensors: dict[str, Tensor] = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
    tensors["optimizer.0.bias.step"] = torch.tensor(5.0)
    tensors[f"rng.rank_{world.rank}.torch"] = torch.full((4,), world.rank, dtype=torch.uint8)
    return state_of(tensors, {"epoch": 2})


def load_sharded(world: GroupWorld, directory: Path) -> None:
    """Into FSDP2 shards, whoever wrote it; each rank its own generator as well."""
    model = sharded_model(world)
    saved = open_latest(directory, world)
    generator = torch.zeros(4, dtype=torch.uint8)
    tensors: dict[str, Tensor] = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
    tensors[f"rng.rank_{world.rank}.torch"] = generator
    state = state_of(tensors)
    saved.read(state)
    assert state.values == {"epoch": 2}
    assert generator.tolist() == 4 * [world.rank]
    for name, parameter in model.named_parameters():
        assert isinstance(parameter.data, DTensor)
        assert torch.equal(parameter.data.full_tensor(), weights()[name]), name


def replicated(world: GroupWorld, directory: Path) -> None:
    """Tensors that both ranks have are stored once, the work shared; both get them back."""
    tensors = {f"model.{name}": weight.clone() for name, weight in weights().items()}
    checkpointer = Sharded().open(directory, world)
    checkpointer.save(state_of(tensors), progress=PROGRESS, metrics={})
    saved = open_latest(directory, world)
    held = []
    for rank in range(world.size):
        with safe_open(saved.path / f"rank_{rank}.safetensors", "pt") as file:
            held.append(set(file.keys()))
    assert all(held)
    assert held[0] & held[1] == set()
    assert held[0] | held[1] == tensors.keys()
    for tensor in tensors.values():
        tensor.zero_()
    saved.read(state_of(tensors))
    assert all(torch.equal(tensors[f"model.{name}"], weight) for name, weight in weights().items())


def one_fails(world: GroupWorld, directory: Path) -> None:
    """What one rank cannot do, all ranks hear, and nothing is committed."""
    checkpointer = Sharded().open(directory, world)
    bad = state_of({f"rng.rank_{world.rank}.z": torch.ones(1, dtype=(torch.float32, torch.complex128)[world.rank])})
    message = failure(lambda: checkpointer.save(bad, progress=PROGRESS, metrics={}))
    assert message.startswith("rng.rank_1.z cannot be saved: safetensors has no dtype complex128."), message
    good = state_of({"model.w": torch.ones(2)}, {"bad": {1}})
    message = failure(lambda: checkpointer.save(good, progress=PROGRESS, metrics={}))
    assert message.startswith("values['bad'] cannot be saved"), message
    assert latest(directory, world) is None
    good.values.clear()
    checkpointer.save(good, progress=PROGRESS, metrics={})
    path = latest(directory, world)
    assert path is not None
    asked = state_of({"model.w": torch.zeros(2), **({"model.x": torch.zeros(1)} if world.rank else {})})
    message = failure(lambda: opened(path, world).read(asked))
    assert message == f"{path} is not a checkpoint of this model: model.x is missing.", message


def failure(action: object) -> str:
    """The message of the CheckpointError that the action must raise."""
    assert callable(action)
    try:
        action()
    except CheckpointError as error:
        return str(error)
    raise AssertionError("no error was raised")


def start(rank: int, scenario: Callable[[GroupWorld, Path], None], directory: Path) -> int:
    """Fork a rank; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(WORLD_SIZE)}
        world = join_group(CPU, axes=AXES, backend="gloo", local_rank=rank, timeout=timedelta(seconds=45))
        scenario(world, directory)
        world.close()
        code = 0
    except BaseException:  # noqa: BLE001  # the test shows whatever it was
        traceback.print_exc()
    os._exit(code)


if __name__ == "__main__":
    known = (
        save_sharded,
        save_full,
        save_later,
        later_fails_on_one,
        load_sharded,
        replicated,
        one_fails,
        changes_between_saves,
        frozen,
    )
    scenarios = {scenario.__name__: scenario for scenario in known}
    pids = [start(rank, scenarios[sys.argv[1]], Path(sys.argv[2])) for rank in range(WORLD_SIZE)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    sys.exit(f"exit codes of the ranks: {codes}" if any(codes) else 0)
