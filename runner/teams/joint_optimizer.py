"""Several optimizers that step together, as one: each has the parameters of one model."""

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch.optim import Optimizer


@final
class JointOptimizer(Optimizer):
    """Has the parameter groups and the state of its parts, which keep their own rules of updating."""

    def __init__(self, parts: Mapping[str, Optimizer]) -> None:
        """Join optimizers.

        Args:
            parts: by the name of the model that each one updates.
        """
        super().__init__([group for part in parts.values() for group in part.param_groups], {})
        self.parts = dict(parts)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Let each part update its parameters."""
        with torch.no_grad():
            for part in self.parts.values():
                part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load settings and state of all parts."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Let parts look at the groups and the state that this one has."""
        begin = 0
        for part in self.parts.values():
            end = begin + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[begin:end], self.state
            begin = end
