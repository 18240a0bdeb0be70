"""DiLoCo: Douillard et al. (2023), arXiv:2311.08105; in fragments as in Streaming DiLoCo (2025), arXiv:2501.18512."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, final

from runner.config.sections import flattened
from runner.errors import Fault
from runner.protocols import Axes, Builder, Placed, Trainable, World
from runner.strategy.fsdp import FSDP
from runner.strategy.local_sgd.exchanges import Exchanges
from runner.strategy.local_sgd.replica import place_replica, prepare_replica, replica_axes, replica_model_checks

if TYPE_CHECKING:
    from torch.nn import Module

    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class DiLoCo:
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

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """No faults: any number of replicas works, and the outer optimizer steps for a single one, too."""
        return ()

    def model_checks(self, spec: "RunSpec") -> "Iterable[Callable[[Module], Iterable[Fault]]]":
        """Check that the model has the classes that become units, if replicas are sharded."""
        return replica_model_checks(self.replica, spec)

    def axes(self, num_ranks: int) -> Axes:
        """The replicas, and the ranks of each.

        Raises:
            ValueError: the shard size does not divide the number of ranks.
        """
        return replica_axes(self.replica, num_ranks)

    def place(self, builder: Builder, world: World) -> Placed:
        """The model on every replica, without the outer optimizer."""
        return place_replica(self.replica, builder, world)

    def prepare(self, builder: Builder, world: World) -> Trainable:
        """The model and its inner optimizer on every replica, and the outer optimizer, which is the same on all."""
        from runner.strategy.local_sgd.outer_sgd import OuterSGD

        momentum, nesterov = self.outer_momentum, self.outer_nesterov
        outer = partial(OuterSGD, lr=self.outer_lr, momentum=momentum, nesterov=nesterov)
        return prepare_replica(self.replica, builder, world, exchanges=self.exchanges, open_outer=outer)
