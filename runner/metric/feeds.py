"""Which of the loss hook's outputs a metric is fed with: one for each parameter of its function."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import Parameter
from typing import TYPE_CHECKING, Any

from runner.config.nearest import did_you_mean, listed
from runner.errors import Fault, HookError
from runner.protocols import MicroBatchLoss

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Feeds", "Values", "feed_faults", "feeds_of", "is_filler", "taken"]

Feeds = Mapping[str, str]
"""The output that each parameter is fed with."""
Values = Mapping[str, "Tensor | Sequence[Any]"]
NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def feeds_of(function: Callable[..., Any], inputs: Feeds, *, given: Iterable[str] = ()) -> Feeds:
    """The output that each parameter of a function is fed with.

    A parameter without a default that the recipe neither feeds nor gives is fed with the output of its own name.

    Args:
        inputs: what the recipe says, by parameter.
        given: parameters for which the recipe has an argument.
    """
    required = [p.name for p in _parameters(function) if p.kind in NAMED and p.default is Parameter.empty]
    return {name: name for name in required if name not in given} | dict(inputs)


def feed_faults(function: Callable[..., Any], called: str, inputs: Feeds, *, key: str) -> Iterator[Fault]:
    """A fault for each input that names no parameter of the function."""
    parameters = _parameters(function)
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.kind in NAMED]
    for name in inputs:
        if name not in known:
            rule = f"{called} takes no {name!r}.{did_you_mean(name, known)} It takes: {listed(known)}."
            yield Fault(key=f"{key}.inputs.{name}", message=rule)


def is_filler(loss: MicroBatchLoss) -> bool:
    """Whether a micro-batch repeats an item that another one counts."""
    return loss.weight == 0


def taken(loss: MicroBatchLoss, feeds: Feeds, *, metric: str) -> Values:
    """The outputs of a micro-batch by the parameters that they are for.

    Raises:
        HookError: the loss hook does not give one of them.
    """
    missing = sorted(name for name in feeds.values() if name not in loss.outputs)
    if missing:
        there = f"It gives: {', '.join(loss.outputs)}." if loss.outputs else "It gives none."
        raise HookError(
            f"metric.{metric} is fed with the output {missing[0]!r}, which the loss hook does not give. {there} Return "
            f"Loss(total, count, outputs={{{missing[0]!r}: …}}), or choose another output in metric.{metric}."
        )
    return {parameter: loss.outputs[name] for parameter, name in feeds.items()}


def _parameters(function: Callable[..., Any]) -> list[Parameter]:
    try:
        return [*inspect.signature(function).parameters.values()]
    except (ValueError, TypeError):
        return []  # a built-in without a signature: the recipe must name its inputs
