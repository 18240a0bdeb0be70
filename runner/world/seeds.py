"""Random numbers: seeded equally where ranks must agree, differently elsewhere, and restored on resume."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy
import torch
from torch import Tensor

from runner.errors import ModelError

NO_IMPLEMENTATION = " does not have a deterministic implementation"
"""How torch's error continues after the operation's name."""

# splitmix64: consecutive seeds give unrelated streams. Steele, Lea, Flood (OOPSLA 2014).
_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

# The generators behind the functions of `random` and `numpy.random`. Those take any kind of seed; not to look at its
# kind saves a third of the time, for every item that is read and every micro-batch of a pipeline.
_OF_PYTHON: Any = random.random.__self__  # type: ignore[attr-defined]
_OF_NUMPY: Any = numpy.random.random_sample.__self__  # type: ignore[attr-defined]
_seed_of_python = super(random.Random, _OF_PYTHON).seed


def mix(*parts: int) -> int:
    """Mix numbers into one 63-bit seed: the same on every machine and release, unrelated for similar inputs."""
    state = 0
    for part in parts:
        state = _mixed(state, part)
    return state >> 1


def _mixed(state: int, part: int) -> int:
    state = (state + _GAMMA + part) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def mix_each(seed: int, first: int, offsets: Sequence[int]) -> list[int]:
    """`mix(seed, first + offset)` of each offset; of 32 in a quarter of the time."""
    if len(offsets) < 8:
        return [mix(seed, first + offset) for offset in offsets]
    state: Any = numpy.array(offsets, dtype=numpy.int64).view(numpy.uint64) + (
        (_mixed(0, seed) + _GAMMA + first) & _MASK
    )
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB
    seeds: list[int] = ((state ^ (state >> 31)) >> 1).tolist()
    return seeds


def seed_all(seed: int) -> None:
    """Seed Python, NumPy, torch and every device of this process."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_host(seed: int) -> None:
    """Seed what code that reads data draws from: Python, NumPy and torch's generator of the host.

    A tenth of the time that `seed_all` takes, which looks at every kind of device.
    """
    seed_python(seed)
    torch.default_generator.manual_seed(seed)


def seed_python(seed: int) -> None:
    """Seed Python's and NumPy's generators, as their own functions do: most of what `seed_host` takes."""
    _seed_of_python(seed)
    _OF_PYTHON.gauss_next = None
    _OF_NUMPY.seed(seed % 2**32)


def seed_rank(seed: int, device: torch.device) -> None:
    """Seed what code on this device draws from: as `seed_host`, and the device's own generator."""
    seed_host(seed)
    _seed_device(seed, device)


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the host and of this device."""
    torch.default_generator.manual_seed(seed)
    _seed_device(seed, device)


def _seed_device(seed: int, device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


@final
class DrawWatch:
    """Tells whether generators of the host were used: Python's and NumPy's by the numbers that come next."""

    def __init__(self, seed: int) -> None:
        """Watch.

        Args:
            seed: of Python's and NumPy's while they are watched.
        """
        self._seed = seed
        of_numpy = numpy.random.RandomState(seed % 2**32)
        self._next = random.Random(seed).getrandbits(64), of_numpy.random_sample()
        self._torch: Tensor | None = None

    def begin(self, *, torch_seed: int | None = None) -> None:
        """Seed them.

        Args:
            torch_seed: of torch's; None = it is not watched.
        """
        seed_python(self._seed)
        self._torch = None if torch_seed is None else torch.default_generator.manual_seed(torch_seed).get_state()

    def drew(self) -> bool:
        """Whether any was used since; to be asked once, since it draws from them."""
        if self._torch is not None and not torch.equal(self._torch, torch.default_generator.get_state()):
            return True
        return (random.getrandbits(64), numpy.random.random_sample()) != self._next


@contextmanager
def host_generators_kept() -> Iterator[None]:
    """Leave the generators that `seed_host` seeds as they were before the block."""
    python, of_numpy, of_torch = random.getstate(), numpy.random.get_state(legacy=False), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)


def set_deterministic() -> None:
    """Make torch use deterministic kernels only, and raise for an operation that has none.

    cuBLAS reads CUBLAS_WORKSPACE_CONFIG when it is first used; the launcher sets it for such a run.
    """
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


@contextmanager
def report_nondeterminism() -> Iterator[None]:
    """Report operations without a deterministic implementation by name, with suggestions.

    Raises:
        ModelError: the block called one under `set_deterministic`.
    """
    try:
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(NO_IMPLEMENTATION)
        if not found:
            raise
        raise ModelError(
            f"run.deterministic=true, but {operation.split()[-1]} has no deterministic implementation on this device. "
            "Use another operation there (the traceback says where), allow this one in your hook with "
            "torch.use_deterministic_algorithms(False) around it, or train with run.deterministic=false."
        ) from error


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The states of this process's random generators by name, as copies.

    torch's and a device's states are their own bytes (uint8); Python's and NumPy's are Mersenne words (int64), and the
    spare Gaussian that each may hold (float64, NaN = none).
    """
    version, words, spare = random.getstate()
    numpy_state: Any = numpy.random.get_state(legacy=False)
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_spare": torch.tensor(math.nan if spare is None else spare, dtype=torch.float64),
        "numpy": torch.tensor([numpy_state["state"]["pos"], *numpy_state["state"]["key"].tolist()], dtype=torch.int64),
        "numpy_spare": torch.tensor(
            numpy_state["gauss"] if numpy_state["has_gauss"] else math.nan, dtype=torch.float64
        ),
    }
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state(device)
    return states


def load_rng_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore this process's random generators from `rng_state`."""
    torch.set_rng_state(states["torch"])
    version, *words = states["python"].tolist()
    spare = states["python_spare"].item()
    random.setstate((version, tuple(words), None if math.isnan(spare) else spare))
    position, *keys = states["numpy"].tolist()
    spare = states["numpy_spare"].item()
    numpy.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": numpy.array(keys, dtype=numpy.uint32), "pos": position},
            "has_gauss": int(not math.isnan(spare)),
            "gauss": 0.0 if math.isnan(spare) else spare,
        }
    )
    if "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"], device)
