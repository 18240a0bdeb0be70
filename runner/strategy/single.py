"""One process, one copy of the model: the reference that every other strategy is measured against."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from runner.errors import Fault
from runner.protocols import Axes, Axis, Builder, Trainable, World

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec
    from runner.strategy.common.placed_module import PlacedModule


@final
@dataclass(frozen=True, kw_only=True)
class Single:
    """The plain module on one device."""

    compiles_steps: ClassVar[bool] = True
    spares_compiler: ClassVar[bool] = True

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Report a fault if the run has more than one process."""
        if spec.world_size > 1:
            requested = f"hardware.processes={spec.hardware.processes}"
            if spec.launch.nodes > 1:
                requested += f" on launch.nodes={spec.launch.nodes}"
            rule = f"single runs in one process, but the recipe asks for {requested}. Use strategy=ddp, or one process."
            yield Fault(key="strategy", message=rule)

    def axes(self, num_ranks: int) -> Axes:
        """One axis of replicas, of any length; `check` reports more than one process."""
        return Axes(names=(Axis.REPLICATE,), sizes=(num_ranks,), data=(Axis.REPLICATE,))

    def place(self, builder: Builder, world: World) -> "PlacedModule":
        """The plain model on the device."""
        from runner.strategy.common.placed_module import place_whole

        return place_whole(builder, world)

    def prepare(self, builder: Builder, world: World) -> Trainable:
        """The plain model and its optimizer."""
        from runner.strategy.common.module_trainable import train_alone

        return train_alone(builder, world)
