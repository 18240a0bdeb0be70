"""torch.compile over a model in place: its modules, classes and names stay as they are."""

from collections.abc import Iterable

from torch.nn import Module

from runner.config.nearest import did_you_mean, listed
from runner.config.run_spec import Compile
from runner.errors import Fault, SpecError


def compile_in_place(modules: Iterable[Module], part: Compile) -> None:
    """Let calls of these modules go through a compiled graph from the first one on.

    Raises:
        SpecError: there is no such backend or mode.
    """
    _check(part)
    for module in modules:
        module.compile(backend=part.backend, mode=part.mode, dynamic=part.dynamic)


def _check(part: Compile) -> None:
    import torch._dynamo
    import torch._inductor

    backends = torch._dynamo.list_backends(exclude_tags=())
    if part.backend not in backends:
        rule = f"there is no such backend.{did_you_mean(part.backend, backends)} There are: {listed(backends)}."
        raise SpecError(Fault(key="compile.backend", message=f"{part.backend}: {rule}"))
    modes = list(torch._inductor.list_mode_options())
    if part.mode is not None and part.mode not in modes:
        rule = f"there is no such mode.{did_you_mean(part.mode, modes)} There are: {listed(modes)}."
        raise SpecError(Fault(key="compile.mode", message=f"{part.mode}: {rule}"))
