"""DiLoCo: Douillard et al. (2023), arXiv:2311.08105; in fragments as in Streaming DiLoCo (2025), arXiv:2501.18512."""

from dataclasses import dataclass
from functools import partial
from typing import final

from runner.config.sections import flattened
from runner.protocols import Builder, Trainable, World
from runner.strategy.fsdp import FSDP
from runner.strategy.local_sgd.exchanges import Exchanges
from runner.strategy.local_sgd.replica import OfReplicas


@final
@dataclass(frozen=True, kw_only=True)
class DiLoCo(OfReplicas):
    """Local SGD whose exchanges are the steps of an outer optimizer: its gradient is how far the replicas have come."""

    exchanges: Exchanges = flattened(Exchanges, every_steps=100)
    """After which steps the outer optimizer takes its step."""
    outer_lr: float = 0.7
    """Learning rate of the outer SGD; 1 without momentum is local SGD."""
    outer_momentum: float = 0.9
    """Momentum of the outer SGD; 0 = none."""
    outer_nesterov: bool = True
    """Whether the momentum is Nesterov's."""
    replica: FSDP = flattened(FSDP, shard_size=1)
    """How a replica of several ranks is sharded among them."""

    def __post_init__(self) -> None:
        if not self.outer_lr > 0:
            raise ValueError(f"outer_lr={self.outer_lr} must be above 0.")
        if not 0 <= self.outer_momentum < 1:
            raise ValueError(f"outer_momentum={self.outer_momentum} must lie in [0, 1).")
        if self.outer_nesterov and not self.outer_momentum:
            rule = "outer_nesterov=true needs a momentum. Use outer_nesterov=false."
            raise ValueError(f"outer_momentum=0: {rule}")

    def prepare(self, builder: Builder, world: World) -> Trainable:
        """The model and its inner optimizer on every replica, and the outer optimizer, which is the same on all."""
        from runner.strategy.local_sgd.outer_sgd import OuterSGD

        momentum, nesterov = self.outer_momentum, self.outer_nesterov
        outer = partial(OuterSGD, lr=self.outer_lr, momentum=momentum, nesterov=nesterov)
        return self._prepare(builder, world, outer)
