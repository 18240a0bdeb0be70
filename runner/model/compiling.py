"""Applies torch.compile to modules in place, whose classes and names do not change, and to functions."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import Module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from runner.config.nearest import did_you_mean, listed
from runner.config.of_blocks import Compile
from runner.errors import Fault, SpecError

FIXED = re.compile(r"(dict\()?G\['__(import_(torch|runner)(_dot_\w+)?|builtins_dict__\w+)'\]")
"""What the name of a check begins with that is of a global of torch, of this package, or of Python."""
MODULE_HOOKS = "._global_"
"""What is in the names of torch's hooks for all modules, which may come and go."""


def compile_in_place(modules: Iterable[Module], part: Compile) -> None:
    """Compile these modules on their first call.

    Raises:
        SpecError: there is no such backend or mode.
    """
    if faults := list(compiler_faults(part)):
        raise SpecError(*faults)
    backend = _CopiesViews(part)
    for module in modules:
        module.compile(backend=backend, dynamic=part.dynamic)


def compile_function(function: Callable[..., Any], part: Compile) -> Callable[..., Any]:
    """Compile a function as a single graph on its first call; it may contain a backward, by torch.autograd.grad.

    A call does not look whether torch's own functions and the runner's are still what they were.
    """
    import torch._dynamo

    torch._dynamo.config.trace_autograd_ops = True  # a graph is compiled again where it is another value

    def call(*args: Any) -> Any:
        return function(*args)

    return torch.compile(  # type: ignore[call-overload, no-any-return]  # which lacks isolate_recompiles
        call,
        fullgraph=True,
        backend=_backend(part),
        dynamic=part.dynamic,
        options={"guard_filter_fn": _what_may_change},
        isolate_recompiles=True,
    )


def _what_may_change(guards: Sequence[Any]) -> list[bool]:
    """Of torch's checks before each call of a graph, those that are kept: a third of them are of fixed functions."""
    return [FIXED.match(guard.name) is None or MODULE_HOOKS in guard.name for guard in guards]


def compiler_faults(part: Compile) -> Iterator[Fault]:
    """Report a backend or mode that torch does not have. Imports torch's compiler."""
    import torch._dynamo
    import torch._inductor

    backends = torch._dynamo.list_backends(exclude_tags=())
    if part.backend not in backends:
        rule = f"there is no such backend.{did_you_mean(part.backend, backends)} There are: {listed(backends)}."
        yield Fault(key="compile.backend", message=f"{part.backend}: {rule}")
    modes = list(torch._inductor.list_mode_options())
    if part.mode is not None and part.mode not in modes:
        rule = f"there is no such mode.{did_you_mean(part.mode, modes)} There are: {listed(modes)}."
        yield Fault(key="compile.mode", message=f"{part.mode}: {rule}")


def _backend(part: Compile) -> Any:
    """The backend that torch.compile makes of its arguments."""
    own: Any = torch
    if part.backend == "inductor":
        return own._TorchCompileInductorWrapper(part.mode, None, part.dynamic)
    return own._TorchCompileWrapper(part.backend, None, None, part.dynamic)


@final
class _CopiesViews:
    """A backend of torch.compile, whose graphs return copies where they would return views of DTensors.

    Where a graph breaks, views are made again from their base, by as_strided, which DTensor does not have.
    """

    def __init__(self, part: Compile) -> None:
        self._compile = _backend(part)

    def __call__(self, module: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graph: Any = module.graph
        output = graph.output_node()
        with graph.inserting_before(output):
            output.args = (tuple(self._copied(graph, node) for node in output.args[0]),)
        module.recompile()
        compiled: Callable[..., Any] = self._compile(module, inputs)
        return compiled

    def reset(self) -> None:
        """Free what the backend holds for all of its graphs."""
        self._compile.reset()

    @staticmethod
    def _copied(graph: Any, node: Any) -> Any:
        value: Any = node.meta.get("example_value") if isinstance(node, Node) else None
        is_view = isinstance(value, Tensor) and value._is_view() and is_traceable_wrapper_subclass(value)
        return graph.call_method("clone", (node,)) if is_view else node
