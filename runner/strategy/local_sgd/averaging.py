"""Averages the weights of replicas."""

from collections.abc import Sequence
from typing import final

from torch import Tensor

from runner.model.local_part import local_part
from runner.protocols import SavedState, World
from runner.strategy.local_sgd.trainable import Named
from runner.world.exchange import mean_over


@final
class Averaging:
    """The mean over replicas, in float32; keeps nothing between exchanges."""

    def __init__(self, named: Sequence[Named], replicas: World) -> None:
        self._parameters = dict(named)
        self._replicas = replicas

    def exchange(self, names: Sequence[str]) -> None:
        """Replace these weights by their mean. Collective."""
        mean_over(self._replicas, [local_part(self._parameters[name].detach()) for name in names])

    def restart(self) -> None:
        """Do nothing: an exchange does not depend on where the replicas started."""

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """There is no state to save."""
        return {}

    def wanted(self, saved: SavedState) -> dict[str, dict[str, Tensor]]:
        """There is no state to read."""
        return {}

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        """There is no state to load."""
