"""Local SGD: Stich (ICLR 2019); with a warm-up, post-local SGD: Lin et al. (ICLR 2020)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
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
class LocalSGD:
    """Each replica takes steps on its own share of the items; now and then the replicas average their weights."""

    exchanges: Exchanges = flattened(Exchanges, every_steps=8)
    """After which steps weights are averaged."""
    replica: FSDP = flattened(FSDP, shard_size=1)
    """How a replica of several ranks is sharded among them."""

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """No faults: any number of replicas works, and one replica has nothing to average."""
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
        """The model on every replica."""
        return place_replica(self.replica, builder, world)

    def prepare(self, builder: Builder, world: World) -> Trainable:
        """The model and its optimizer on every replica."""
        from runner.strategy.local_sgd.averaging import Averaging

        return prepare_replica(self.replica, builder, world, exchanges=self.exchanges, open_outer=Averaging)
