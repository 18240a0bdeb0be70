"""Where the self-test's runs take place on this machine."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, final

from runner.composition.compose import compose
from runner.composition.recipe import Recipe, shipped_root
from runner.config.read import read
from runner.machine.options import PROBE, option_faults, shipped_options

__all__ = ["Place", "Way", "find_places", "saves", "synchronous"]

BEST = ("hardware=auto",)
HOST = ("hardware=cpu", "hardware.oversubscribe=true")
"""Any number of processes, on any machine."""
BUFFERS = ("reduce_bucket_size",)
BUFFER_ITEMS = 1 << 16
"""Keys of strategies whose default suits large models, and a value for small ones: buffers of 2 GB, filled and dropped,
took 18 of 22 s of a run."""
MOST = 2
"""Processes, at most."""
ITEMS = {1: "batch.micro_items=4", 2: "batch.micro_items=3"}
"""By the number of processes: a step of 12 items is divided into micro-batches, too."""


@final
class Way(NamedTuple):
    """An option, and the number of processes to run it on."""

    option: str
    processes: int

    def __str__(self) -> str:
        return f"{self.option}, {self.processes} {'process' if self.processes == 1 else 'processes'}"


@final
class Place(NamedTuple):
    """Devices of this machine."""

    hardware: Sequence[str]
    """Overrides that choose them."""
    processes: int
    """How many processes run there, at most."""
    forks: bool
    """Whether they allow ranks to be forked."""
    faults: Mapping[int, Mapping[str, Mapping[str, list[str]]]]
    """What options find wrong there, by the number of processes, group and name."""
    buffers: Mapping[str, tuple[str, ...]] = {}
    """Overrides that keep the buffers of a strategy small, by its name."""
    independent: Collection[str] = ()
    """Strategies whose result depends on the number of processes."""

    def placed(self, processes: int) -> tuple[str, ...]:
        """The overrides for this many processes."""
        return (*self.hardware, f"hardware.processes={processes}")

    def divided(self, way: Way) -> tuple[str, ...]:
        """The overrides of a strategy, on its processes, with each step divided into micro-batches."""
        buffers = self.buffers.get(way.option, ())
        return (*self.placed(way.processes), f"strategy={way.option}", *buffers, ITEMS[way.processes])

    def ways(self, group: str, *, at_most: int = MOST) -> tuple[list[Way], dict[str, str]]:
        """The options of a group that can run here, on as many processes as they can, and what the others need."""
        usable, missing = list[Way](), dict[str, str]()
        for option, faults in self.faults[1][group].items():
            counts = [count for count in self.faults if count <= at_most and not self.faults[count][group][option]]
            if counts:
                usable.append(Way(option, max(counts)))
            else:
                missing[option] = " ".join(faults)
        return usable, missing


def synchronous(place: Place, ways: Sequence[Way]) -> list[Way]:
    """Those with which the number of processes does not change the result."""
    return [way for way in ways if way.option not in place.independent]


def saves(overrides: Sequence[str]) -> bool:
    """Whether a run with these overrides saves checkpoints."""
    config = compose(Recipe(PROBE), overrides, directories=[shipped_root() / "conf"]).config
    checkpoint = read(config, import_roots=[], check=False).checkpoint
    return bool(checkpoint.every_steps or checkpoint.every_minutes or checkpoint.at_end)


def find_places() -> list[Place]:
    """The best devices of this machine; and the CPU, if there are not enough of them for two processes."""
    best = compose(Recipe(PROBE), BEST, directories=[shipped_root() / "conf"]).read(rules=()).hardware
    if best.count() > 1:
        return [_place(BEST, 2, forks=best.can_fork)]
    return [_place(BEST, 1, forks=best.can_fork), _place(HOST, 2, forks=True)]


def _place(hardware: Sequence[str], processes: int, *, forks: bool) -> Place:
    faults = {count: option_faults((*hardware, f"hardware.processes={count}")) for count in range(1, processes + 1)}
    buffers, independent = dict[str, tuple[str, ...]](), set[str]()
    for option in shipped_options()["strategy"]:
        config = compose(Recipe(PROBE), [f"strategy={option}"], directories=[shipped_root() / "conf"]).config
        buffers[option] = tuple(f"strategy.{key}={BUFFER_ITEMS}" for key in BUFFERS if key in config["strategy"])
        if read(config, import_roots=[], check=False).strategy.axes(MOST).independent:
            independent.add(option)
    return Place(hardware, processes, forks, faults, buffers, independent)
