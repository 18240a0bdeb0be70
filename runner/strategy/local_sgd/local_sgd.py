"""Local SGD: Stich (ICLR 2019); with a warm-up, post-local SGD: Lin et al. (ICLR 2020)."""

from dataclasses import dataclass
from typing import final

from runner.config.sections import flattened
from runner.protocols import Builder, Trainable, World
from runner.strategy.fsdp import FSDP
from runner.strategy.local_sgd.exchanges import Exchanges
from runner.strategy.local_sgd.replica import OfReplicas


@final
@dataclass(frozen=True, kw_only=True)
class LocalSGD(OfReplicas):
    """Each replica takes steps on its own share of the items; now and then the replicas average their weights."""

    exchanges: Exchanges = flattened(Exchanges, every_steps=8)
    """After which steps weights are averaged."""
    replica: FSDP = flattened(FSDP, shard_size=1)
    """How a replica of several ranks is sharded among them."""

    def prepare(self, builder: Builder, world: World) -> Trainable:
        """The model and its optimizer on every replica."""
        from runner.strategy.local_sgd.averaging import Averaging

        return self._prepare(builder, world, Averaging)
