"""The result of a metric as numbers by name."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from runner.errors import HookError
from runner.protocols import World


def computed_on_main(world: World, compute: Callable[[], Any], name: str) -> dict[str, float]:
    """What a metric's function returns on rank 0, as numbers by name, on every rank. Collective.

    Raises:
        HookError: on rank 0, as `named_values`.
    """
    values: dict[str, float] = world.broadcast_object(named_values(compute(), name) if world.is_main else {})
    return values


def named_values(result: Any, name: str) -> dict[str, float]:
    """A number gets the metric's name, an entry of a mapping or of a tensor [n] a name after it: f1/0, rouge/rouge1.

    Raises:
        HookError: there is something else in it.
    """
    return dict(_named(result, name, metric=name))


def _named(value: Any, name: str, *, metric: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _named(inner, f"{name}/{key}", metric=metric)
    elif isinstance(value, Tensor) and value.ndim == 1:
        yield from ((f"{name}/{index}", number) for index, number in enumerate(value.double().tolist()))
    elif isinstance(value, Tensor) and value.ndim == 0:
        yield name, float(value.item())
    else:
        try:
            yield name, float(value)  # also of NumPy's
        except (TypeError, ValueError):
            kind = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise HookError(
                f"metric.{metric} returned {kind} as {name}, but must return a number, a tensor [n], or a mapping of "
                "names to these. Return the numbers that matter, or write the rest in a callback (docs/trackers.md)."
            ) from None
