"""The outer optimizer of DiLoCo: torch's SGD over the weights that the replicas last had in common."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from runner.model.local_part import local_part
from runner.protocols import SavedState, World
from runner.strategy.local_sgd.trainable import OUTER, Named
from runner.world.exchange import mean_over

PARAMETER, MOMENTUM = "parameter", "momentum_buffer"


@final
class OuterSGD:
    """Steps from the common weights against the mean of how far each replica has come; the same on all replicas."""

    def __init__(self, named: Sequence[Named], replicas: World, *, lr: float, momentum: float, nesterov: bool) -> None:
        self._weights = dict(named)
        self._replicas = replicas
        self._common = {name: _wide(weight) for name, weight in named}
        self._sgd = torch.optim.SGD(self._common.values(), lr=lr, momentum=momentum, nesterov=nesterov)

    @torch.no_grad()
    def exchange(self, names: Sequence[str]) -> None:
        """One outer step of these weights. Collective."""
        for name in names:
            common = self._common[name]
            common.grad = common.detach() - self._weights[name].detach().to(common.dtype)
        mean_over(self._replicas, [local_part(grad) for name in names if (grad := self._common[name].grad) is not None])
        self._sgd.step()
        self._sgd.zero_grad(set_to_none=True)
        for name in names:
            self._weights[name].copy_(self._common[name])

    @torch.no_grad()
    def restart(self) -> None:
        """Take the weights that the replicas have now, which are equal, as what they have in common."""
        for name, weight in self._weights.items():
            self._common[name].copy_(weight)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The common weights and their momentum, by the model's parameter names."""
        state = {name: {PARAMETER: common.detach()} for name, common in self._common.items()}
        for name, common in self._common.items():
            buffer = self._sgd.state.get(common, {}).get(MOMENTUM)
            if buffer is not None:
                state[name][MOMENTUM] = buffer
        return state

    def wanted(self, saved: SavedState) -> dict[str, dict[str, Tensor]]:
        """Room for what a checkpoint has of this state; empty if another strategy wrote it."""
        stored = saved.stored.optimizers.get(OUTER, {})
        return {
            name: {key: torch.empty_like(self._common[name], requires_grad=False) for key in stored[name]}
            for name in self._common
            if name in stored
        }

    @torch.no_grad()
    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Continue from what `wanted` gave room for and a checkpoint has filled."""
        self._sgd.state.clear()
        for name, slots in state.items():
            self._common[name].copy_(slots[PARAMETER])
            if MOMENTUM in slots:
                self._sgd.state[self._common[name]] = {MOMENTUM: slots[MOMENTUM]}


def _wide(weight: Tensor) -> Tensor:
    """A copy in float32 at least, which an optimizer takes for a parameter."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return weight.detach().to(wide, copy=True).requires_grad_()
