"""Mutated checkpoints: each is refused by a CheckpointError that names a file, or is read as it was.

Nothing else is raised, nothing is executed, no memory is claimed above a bound, and no older checkpoint is taken.
Accidents change bytes; a stranger changes what they mean and computes the hashes again.
"""

import json
import random
import re
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from runner.checkpoint.retention import Retention
from runner.checkpoint.sharded import Sharded
from runner.errors import CheckpointError
from runner.protocols import Progress, State
from runner.storage.checkpoints import Checkpoints
from runner.storage.export import export_weights
from runner.world.solo import SoloWorld
from tests.storage.forging import plant, plant_payload, sealed
from tests.storage.states import state_of

PAYLOAD = "rank_0.safetensors"
FILES = ("manifest.json", "metadata.json", "state.json", PAYLOAD)
WORLD = SoloWorld(torch.device("cpu"))
MEMORY = 1 << 30
EVENTS = {"pickle.find_class", "os.system", "subprocess.Popen", "os.posix_spawn", "os.exec", "os.fork"}
VALUES = {
    "step": 2,
    "metrics": {"eval/loss": 0.5, "worst": float("inf")},
    "groups": [{"lr": 1e-3, "betas": [0.9, 0.99]}],
}

SIZES = [pytest.param(60, id="some"), pytest.param(2500, id="2500", marks=pytest.mark.exhaustive)]
"""Mutations of each file: 10,000 of each kind for the four together."""


class Copy:
    """A run with two checkpoints, of which the newer one is mutated and mended."""

    def __init__(self, run: Path) -> None:
        self.newer = run / "checkpoints" / "step_2"
        checkpointer = Sharded(retention=Retention(keep_last=None)).open(run, WORLD)
        for step in (1, 2):
            state = tensors(float(step))
            state.values = VALUES | {"step": step}
            checkpointer.save(state, progress=Progress(step=step, position=step), metrics={"eval/loss": 0.5})
        self.files = {name: (self.newer / name).read_bytes() for name in FILES}
        self.out = run / "out"
        self.out.mkdir()

    def mend(self) -> None:
        for name, content in self.files.items():
            (self.newer / name).write_bytes(content)

    def check(self, *, values: Callable[[], object], may_go_back: bool = False) -> None:
        """The property. `values` are those that the state may hold, other than the original ones."""
        state = tensors(0.0)
        try:
            path = Checkpoints(self.newer.parent, WORLD).latest()
            assert path is not None
            saved = Checkpoints(self.newer.parent, WORLD).open(path)
            saved.read(state)
        except CheckpointError as error:
            told(error)
        else:
            if may_go_back and path != self.newer:
                return
            assert path == self.newer, "an older one was taken silently"
            assert same(state, tensors(2.0))
            assert json.dumps(state.values) == json.dumps(values())
        try:
            export_weights(self.newer, self.out, dtype="bfloat16", max_shard_bytes=1 << 30)
        except CheckpointError as error:
            told(error)
        finally:
            for file in self.out.iterdir():
                file.unlink()


def told(error: CheckpointError) -> None:
    said = str(error)
    named = r"/step_2/[\w.]+[ :]|/step_2 is not a checkpoint of this model|(step_\d and step_\d) have the serial number"
    assert re.search(named, said), said
    assert len(said) < 2000
    assert said.isprintable()


def tensors(value: float) -> State[Tensor]:
    return state_of(
        {
            "model.w": torch.full((4, 3), value),
            "model.n": torch.full((), int(value)),
            "optimizer.w.exp_avg": torch.full((4, 3), value, dtype=torch.bfloat16),
            "rng.rank_0.torch": torch.full((16,), int(value), dtype=torch.uint8),
        }
    )


def same(one: State[Tensor], other: State[Tensor]) -> bool:
    pairs = [
        (one.models["model"], other.models["model"]),
        (one.optimizers["model"]["w"], other.optimizers["model"]["w"]),
        (one.rng[0], other.rng[0]),
    ]
    return all(torch.equal(mine[name], theirs[name]) for mine, theirs in pairs for name in theirs)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_executed() -> Iterator[None]:
    """The interpreter tells of unpickled classes and started processes; memory is bounded."""
    events: list[str] = []
    watching = [True]
    sys.addaudithook(lambda event, args: events.append(event) if watching[0] and event in EVENTS else None)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    watching[0] = False
    assert events == []


def fuzzed(mutations: int, check: Callable[[random.Random], None]) -> None:
    """Call it with so many different sources of chance; hypothesis shrinks none, but repeats the one that fails."""

    @settings(
        max_examples=mutations,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**64))
    def mutate(seed: int) -> None:
        check(random.Random(seed))

    mutate()


@pytest.mark.fault(
    "bytes of a checkpoint's files are flipped, cut, inserted, removed, overwritten",
    "refused by name; nothing is loaded in part",
)
@pytest.mark.parametrize("mutations", SIZES)
@pytest.mark.parametrize("name", FILES)
def test_changed_bytes(copy: Copy, name: str, mutations: int) -> None:
    """Flipped, cut off, inserted, removed, overwritten; no hash is computed again."""

    def check(chance: random.Random) -> None:
        content = changed_bytes(copy.files[name], chance)
        (copy.newer / name).write_bytes(content)
        try:
            copy.check(values=lambda: VALUES)
        finally:
            copy.mend()

    fuzzed(mutations, check)


@pytest.mark.fault(
    "the meaning of a checkpoint's files is changed and all hashes computed again", "refused by name, or read as it was"
)
@pytest.mark.parametrize("mutations", SIZES)
@pytest.mark.parametrize("name", FILES)
def test_changed_meaning(copy: Copy, name: str, mutations: int) -> None:
    """Values of other types and sizes, missing and doubled ones; all hashes are computed again."""

    def check(chance: random.Random) -> None:
        try:
            seal(copy, name, chance)
            values = VALUES if name != "state.json" else None
            copy.check(
                values=lambda: values or json.loads((copy.newer / name).read_text())["values"],
                may_go_back=name == "manifest.json",  # its serial number says that it is the older one
            )
        finally:
            copy.mend()

    fuzzed(mutations, check)


def seal(copy: Copy, name: str, chance: random.Random) -> None:
    """Mutate a file and compute the hashes that say something about it."""
    if name == PAYLOAD:
        content = changed_bytes(copy.files[name], chance)
        if chance.random() < 0.5:
            content = chance.getrandbits(64).to_bytes(8, "little") + content[8:]
        header = min(8 + int.from_bytes(copy.files[name][:8], "little"), len(content))
        plant_payload(copy.newer, name, content, header=chance.choice([header, len(content)]))
        return
    text = changed_json(copy.files[name].decode(), chance)
    if name == "manifest.json":
        (copy.newer / name).write_bytes(sealed(text))
    else:
        plant(copy.newer, name, text.encode(errors="surrogatepass"))


def changed_bytes(content: bytes, chance: random.Random) -> bytes:
    mutated = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        at = chance.randrange(len(mutated) + 1)
        some = chance.randbytes(chance.choice([1, 1, 2, 8, 100]))
        match chance.randrange(6):
            case 0 | 1 if at < len(mutated):
                mutated[at] ^= 1 << chance.randrange(8)
            case 2:
                del mutated[at:]
            case 3:
                mutated[at:at] = some
            case 4:
                del mutated[at : at + len(some)]
            case _:
                mutated[at : at + len(some)] = some
    return bytes(mutated)


RAW = {
    "deep": "[" * 5000 + "]" * 5000,
    "digits": "9" * 5000,
    "nan": "NaN",
    "infinite": "1e999",
    "twice": '{"a": 1, "a": 2}',
    "surrogate": '"\\ud800"',
}
"""What json.dumps does not write."""
SCALARS: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 8, 2**31, 2**40, 2**62, 2**63, 2**64, -(2**63), 10**400, 0.0, -0.5, 1e308),
    *("", "x", "model.w", "../step_1/rank_0.safetensors", "/dev/zero", "a\0b", "\x1b[31m", "x" * 5000, "é", "0" * 32),
    *("float32", "float64", "int64", "bool", "rank_0.safetensors", "state.json", "os.system", "!!python/object"),
    *([], {}, [[]], [1], [0, 0], [2**40], [4, 3], [-1, 3], {"a": 1}, [None] * 100),
    *(f"<{name}>" for name in RAW),
]


def changed_json(text: str, chance: random.Random) -> str:
    """Replace, remove, double or rename something in a JSON object, wherever it stands."""
    fields = json.loads(text)
    fields.pop("xxh3_128", None)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        holder, key = chance.choice(list(places(fields)))
        junk = chance.choice(SCALARS)
        number = holder[key] if type(holder[key]) is int else None
        match chance.randrange(7):
            case 0 if number is not None:
                holder[key] = number + chance.choice([-1, 1, -8, 8, 1 << 32])
            case 0 | 1 | 2:
                holder[key] = junk
            case 3:
                del holder[key]
            case 4 if isinstance(holder, list):
                holder.insert(key, json.loads(json.dumps(holder[key])))
            case 4 | 5 if isinstance(holder, dict):
                holder[chance.choice(["x", "", "model.q", "rng.rank_01.torch", "step", "\x1b", f"{key}+"])] = (
                    holder.pop(key) if chance.random() < 0.5 else holder[key]
                )
            case _:
                holder[key] = chance.choice([[holder[key]], {"x": holder[key]}])
        if not fields:
            break
    mutated = json.dumps(fields)
    for name, raw in RAW.items():
        mutated = mutated.replace(f'"<{name}>"', raw)
    if chance.random() < 0.05:
        mutated = mutated.replace("{", '{"format": 3, ', 1)
    return mutated


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every value in it, as what holds it and its key there."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])
