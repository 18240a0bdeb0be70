"""An optimizer's step and its building without what torch wraps around them for torch.compile and for profilers.

torch's optimizers import torch._dynamo, which takes a second and 70 MB, only to exclude themselves from compiled
graphs; a run that compiles nothing can do without. See docs/decisions/034-optimizers-without-dynamo.md.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch._C._autograd import _profiler_enabled
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

EXCLUDED = "__dynamo_disable"
"""Where a function that torch excludes from graphs keeps what to call instead; without it, dynamo is asked."""


@final
class OptimizerStep:
    """Steps an optimizer. One of torch's own is called without its wrappers, unless something observes it."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        function: Any = inspect.unwrap(type(optimizer).step)
        is_torchs = function.__module__.startswith("torch.optim.")
        self._function = function if is_torchs and not optimizer.defaults.get("differentiable") else None

    def __call__(self) -> None:
        """Update the parameters by their gradients."""
        if self._function is None or _is_observed(self._optimizer):
            self._optimizer.step()
            return
        with torch.no_grad():
            self._function(self._optimizer)


def _is_observed(optimizer: Optimizer) -> bool:
    """Whether a profiler is running, or there are hooks around the step, or somebody has replaced it on this object."""
    return bool(
        _profiler_enabled()
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or "step" in vars(optimizer)
    )


@contextmanager
def without_dynamo() -> Iterator[None]:
    """Let optimizers be built, saved and loaded in the block without importing torch._dynamo."""
    functions = [
        inspect.unwrap(method)
        for method in (Optimizer.add_param_group, Optimizer.state_dict, Optimizer.load_state_dict)
    ]
    included = [function for function in functions if not hasattr(function, EXCLUDED)]
    for function in included:
        setattr(function, EXCLUDED, function)
    try:
        yield
    finally:
        for function in included:
            delattr(function, EXCLUDED)
