"""The checks of the self-test. Each makes runs, and compares their losses."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple, final

from runner.selftest.bench import Bench
from runner.selftest.places import Place, Way, saves, synchronous
from runner.selftest.verdict import FLOAT32, NARROW, bitwise, close, falling

__all__ = ["GROUPS", "Check", "Missing", "checks_of"]


@final
class Check(NamedTuple):
    """Something that must hold on this machine."""

    group: str
    name: str
    run: Callable[[Bench], str]
    """Returns what was found, in words. Raises RunError or DiffersError."""


@final
class Missing(NamedTuple):
    """An option that this machine cannot run."""

    group: str
    name: str
    reason: str


def checks_of(group: str, place: Place) -> Iterator[Check | Missing]:
    """The checks of a group in one place, and what cannot be checked there."""
    yield from GROUPS[group](group, place)


def _strategies(group: str, place: Place) -> Iterator[Check | Missing]:
    """A step that is divided among processes and micro-batches is the step of one process over one large batch."""
    usable, missing = place.ways("strategy")
    for way in synchronous(place, usable):
        yield Check(group, str(way), partial(_divided_equals_whole, place=place, way=way))
    yield from (Missing(group, option, reason) for option, reason in missing.items())


def _divided_equals_whole(bench: Bench, *, place: Place, way: Way) -> str:
    whole = bench.trained(*place.placed(1), forks=place.forks).losses
    falling(whole)
    return close(bench.trained(*place.divided(way), forks=place.forks).losses, whole, tolerance=FLOAT32)


def _precisions(group: str, place: Place) -> Iterator[Check | Missing]:
    """A precision begins with the loss of the default one, and learns."""
    usable, missing = place.ways("precision", at_most=1)
    for way in usable:
        yield Check(group, str(way), partial(_learns, place=place, precision=way.option))
    yield from (Missing(group, option, reason) for option, reason in missing.items())


def _learns(bench: Bench, *, place: Place, precision: str) -> str:
    default = bench.trained(*place.placed(1), forks=place.forks).losses
    found = bench.trained(*place.placed(1), f"precision={precision}", forks=place.forks).losses
    falling(found)
    first = min(default)
    return f"first {close({first: found[first]}, {first: default[first]}, tolerance=NARROW)}, and falling"


def _resumes(group: str, place: Place) -> Iterator[Check]:
    """A run that is continued from a checkpoint is, bit by bit, the run that was not interrupted."""
    for way in place.ways("strategy")[0]:
        yield Check(group, str(way), partial(_continues_itself, overrides=place.divided(way), place=place))
    for way in place.ways("checkpoint", at_most=1)[0]:
        overrides = (*place.placed(1), f"checkpoint={way.option}")
        if saves(overrides):
            yield Check(group, f"checkpoint={way.option}", partial(_continues_itself, overrides=overrides, place=place))


def _continues_itself(bench: Bench, *, overrides: tuple[str, ...], place: Place) -> str:
    run = bench.trained(*overrides, forks=place.forks)
    return bitwise(bench.resumed(run, (), forks=place.forks), run.losses)


def _interchanges(group: str, place: Place) -> Iterator[Check]:
    """A checkpoint of each strategy is continued by the next one."""
    usable = synchronous(place, place.ways("strategy")[0])
    for way, other in zip(usable, [*usable[1:], *usable[:1]], strict=True):
        yield Check(group, f"{way.option} → {other}", partial(_continued_by, place=place, way=way, other=other))


def _continued_by(bench: Bench, *, place: Place, way: Way, other: Way) -> str:
    run = bench.trained(*place.divided(way), forks=place.forks)
    words = place.divided(other)[len(place.hardware) :]
    return close(bench.resumed(run, words, forks=place.forks), run.losses, tolerance=FLOAT32)


GROUPS: Mapping[str, Callable[[str, Place], Iterator[Check | Missing]]] = {
    "strategy": _strategies,
    "precision": _precisions,
    "resume": _resumes,
    "interchange": _interchanges,
}
"""What can be asked for by name, in the order in which it is checked."""
