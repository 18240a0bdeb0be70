"""Models that are placed together: one module, whose parts have the models' names."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, final

from torch.nn import Module

from runner.protocols import Loss

Call = Callable[[Any, Any, int], Any]
"""A hook, given the model (or all of several by name), a batch, and how many of its items count."""


@final
class Models(Module):
    """Some of a run's models. It is never called: loss hooks call the models."""

    def __init__(self, models: Mapping[str, Module]) -> None:
        super().__init__()
        for name, model in models.items():
            self._modules[name] = model  # not an attribute: a model may be called `train`

    @property
    def by_name(self) -> dict[str, Module]:
        """Each model."""
        return {name: model for name, model in self._modules.items() if model is not None}


@final
class Cast:
    """All models of a run by name, and the hook that is called with them now."""

    def __init__(self, call: Call | None) -> None:
        """Begin without models; they join when they have been placed.

        Args:
            call: the hook to begin with; None = none is called until there is one.
        """
        self.call = call
        self.models: dict[str, Module] = {}

    def join(self, models: Mapping[str, Module]) -> None:
        """Let hooks have these models, too."""
        for model in models.values():
            assert isinstance(model, Models)
            self.models |= model.by_name

    def loss(self, model: Module, batch: Any, items: int) -> Loss | Any:
        """The hook on a micro-batch, as a strategy calls it: with what it placed itself."""
        assert self.call is not None
        return self.call(self.models, batch, items)


def in_context(model: Module, context: AbstractContextManager[Any]) -> None:
    """Let every forward of a model run inside a context, in place."""
    forward = model.forward

    def inside(*args: Any, **kwargs: Any) -> Any:
        with context:
            return forward(*args, **kwargs)

    model.forward = inside


def prefixed(models: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    """What several models have by name, under the names that it has in `Models`."""
    for model, named in models.items():
        yield from ((f"{model}.{name}", value) for name, value in named.items())
