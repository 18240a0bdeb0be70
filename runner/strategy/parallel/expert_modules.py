"""Finds the experts of a model, and checks before launch that ranks can divide them."""

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from runner.config.nearest import did_you_mean, listed
from runner.errors import Fault
from runner.strategy.parallel.styles import matching, pattern_of

if TYPE_CHECKING:
    from torch.nn import Module, Parameter

KEY = "strategy.expert_modules"
ARGUMENTS = 3
"""Tokens [tokens, width]; the experts of each [tokens, top_k]; the weights of their outputs [tokens, top_k]."""


@runtime_checkable
class StackedExperts(Protocol):
    """Experts whose weights are stacked: those of `runner.model.experts`, and of transformers' models."""

    num_experts: int
    """Experts in this module: the first dimension of each parameter."""


def expert_modules(model: "Module", patterns: Sequence[str]) -> "Iterator[tuple[str, Module]]":
    """The modules that hold experts: those named by a pattern, or without patterns those of `runner.model.experts`."""
    if patterns:
        found = {name: module for pattern in patterns for name, module in matching(model, pattern)}
        return iter(found.items())
    from runner.model.experts import Experts

    return ((name, module) for name, module in model.named_modules() if isinstance(module, Experts))


def expert_faults(model: "Module", patterns: Sequence[str], *, ranks: int, shards: int) -> Iterator[Fault]:
    """Report patterns that name nothing, modules that are not stacked experts, and numbers that do not divide.

    Args:
        ranks: along the expert axis.
        shards: along the shard axis.
    """
    for pattern in patterns:
        if not any(True for _ in matching(model, pattern)):
            names = _candidates(model)
            rule = f"{pattern}: the model has no such module.{did_you_mean(pattern, names)}"
            yield Fault(key=KEY, message=f"{rule} Modules with stacked weights: {listed(names)}.")
    modules = list(expert_modules(model, patterns))
    if not modules and not patterns:
        names = _candidates(model)
        rule = f"strategy.expert={ranks} divides experts, but the model has none of runner.model.experts."
        way_out = f"Name its modules with stacked weights: {listed(names)}." if names else "Use strategy.expert=1."
        yield Fault(key="strategy.expert", message=f"{rule} {way_out}")
    told = set()
    users = Counter(id(parameter) for _, module in modules for parameter in module.parameters())
    for name, module in modules:
        message = _misfit(module, ranks, shards)
        if not message and any(users[id(parameter)] > 1 for parameter in module.parameters()):
            message = "its weights are also those of another module of experts. Use strategy.expert=1."
        if message and message not in told:
            told.add(message)
            yield Fault(key="strategy.expert", message=f"{name}: {message}")


def _misfit(module: "Module", ranks: int, shards: int) -> str:
    """Why the experts cannot be divided, if they cannot."""
    kind = type(module).__name__
    if not isinstance(module, StackedExperts) or type(module.num_experts) is not int:
        return f"a {kind} has no num_experts. {_WANTED}"
    num_experts = module.num_experts
    for name, parameter in module.named_parameters():
        if parameter.shape[:1] != (num_experts,):
            return f"{name} {list(parameter.shape)} is not stacked: it does not begin with {num_experts}. {_WANTED}"
    try:
        inspect.signature(module.forward).bind(*[None] * ARGUMENTS)
    except TypeError as error:
        return f"{kind}.forward cannot be called with tokens, experts and weights ({error}). {_WANTED}"
    if num_experts % ranks:
        nearest = [str(n) for n in range(2, num_experts + 1) if num_experts % n == 0]
        return f"its {num_experts} experts are not divisible by strategy.expert={ranks}. They are by {listed(nearest)}."
    for name, parameter in module.named_parameters():
        own = _own_shape(parameter, ranks)
        if all(size % shards for size in own):
            return f"a rank's part {own} of {name} has no dimension that strategy.shard={shards} divides."
    return ""


_WANTED = (
    "Ranks divide modules whose parameters are all stacked by expert and whose forward takes tokens, the experts of "
    "each and their weights."
)


def _own_shape(parameter: "Parameter", ranks: int) -> list[int]:
    return [parameter.shape[0] // ranks, *parameter.shape[1:]]


def _candidates(model: "Module") -> list[str]:
    """The names of modules that have stacked matrices, with `*` for the numbers in them."""
    names = (
        name
        for name, module in model.named_modules()
        if any(p.ndim > 2 for p in module.parameters(recurse=False)) and isinstance(module, StackedExperts)
    )
    return list(dict.fromkeys(map(pattern_of, names)))
