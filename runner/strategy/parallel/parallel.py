"""One mesh with an axis for each kind of parallelism; their sizes multiply to the number of ranks."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, final

from runner.config.of_blocks import Compiled
from runner.config.sections import flattened
from runner.errors import Fault
from runner.protocols import Axes, Axis, Builder, Placed, Trainable, World
from runner.strategy.fsdp.settings import Build, ShardSettings
from runner.strategy.fsdp.wrap import Wrap
from runner.strategy.parallel.schedule import PipelineSettings
from runner.strategy.parallel.sizes import AUTO, SHARERS, SHARERS_OF_EXPERTS, axes_of, size_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.nn import Module

    from runner.config.run_spec import RunSpec
    from runner.strategy.parallel.context import ContextPlan
    from runner.strategy.parallel.expert import ExpertPlan
    from runner.strategy.parallel.pipeline import PlacedStages
    from runner.strategy.parallel.tensor import TensorPlan
    from runner.strategy.parallel.trainable import PlacedParts

NoSync = Callable[[], AbstractContextManager[Any]]


@final
@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Ranks in a mesh of named axes."""

    replicate: int | str = 1
    """Copies of the model, each of which reads other items; auto = the ranks that are left."""
    shard: int | str = AUTO
    """Ranks that share the parameters, gradients and optimizer state of one copy; each reads other items."""
    tensor: int | str = 1
    """Ranks that hold parts of the same weight matrices and read the same items."""
    tensor_plan: dict[str, str] = field(default_factory=dict)
    """How modules are split among tensor ranks, by patterns of their names; empty = the model's own plan."""
    sequence_parallel: bool = False
    """Split activations between split modules by sequence, instead of keeping them whole on every tensor rank."""
    expert: int | str = 1
    """Ranks that hold different experts and read other items; what is not experts is sharded among them, too."""
    expert_modules: list[str] = field(default_factory=list)
    """Patterns of the names of modules that hold experts; empty = those of runner.model.experts."""
    context: int | str = 1
    """Ranks that compute parts of the same sequences, and share parameters as shards do."""
    pipeline: int | str = 1
    """Ranks that hold consecutive stages of the model, and pass micro-batches on to each other."""
    pipelining: PipelineSettings = flattened(PipelineSettings)
    """How the model is cut into stages, and in which order they work."""
    shards: ShardSettings = flattened(ShardSettings)
    """What is sharded, in which units, and when."""

    def __post_init__(self) -> None:
        sizes = self._sizes()
        if sum(size is None for size in sizes.values()) > 1:
            autos = [str(axis) for axis, size in sizes.items() if size is None]
            raise ValueError(f"{' and '.join(autos)} are auto, but only one axis can take what is left. Give a number.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Check that the settings fit each other; `axes` checks the sizes."""
        axes = self.axes(spec.world_size)
        if self.sequence_parallel and axes.size([Axis.TENSOR]) == 1:
            rule = "splits sequences among tensor ranks, but strategy.tensor=1. Set strategy.tensor, or false."
            yield Fault(key="strategy.sequence_parallel", message=rule)
        if axes.size([Axis.TENSOR]) > 1 and self.shards.build is Build.RANK_0:
            rule = "rank_0 sends whole weights, but strategy.tensor splits them. Use every_rank."
            yield Fault(key="strategy.build", message=rule)
        if axes.size([Axis.EXPERT]) > 1:
            if self.shards.build is Build.RANK_0:
                rule = "rank_0 sends whole weights, but strategy.expert divides experts. Use every_rank."
                yield Fault(key="strategy.build", message=rule)
            if self.sequence_parallel and axes.size([Axis.TENSOR]) > 1:
                rule = "splits the tokens that strategy.expert sends to experts. Use false, or strategy.expert=1."
                yield Fault(key="strategy.sequence_parallel", message=rule)
        elif self.expert_modules:
            rule = "names modules to divide by experts, but strategy.expert=1. Set strategy.expert, or []."
            yield Fault(key="strategy.expert_modules", message=rule)
        if axes.size([Axis.CONTEXT]) > 1:
            yield from self._context_faults(spec)
        yield from self.pipelining.faults(spec, axes.size([Axis.PIPELINE]))
        if axes.size([Axis.PIPELINE]) > 1:
            yield from self._pipeline_faults()

    def model_checks(self, spec: "RunSpec") -> "Iterable[Callable[[Module], Iterable[Fault]]]":
        """Check the tensor plan, the experts, and that the model has the classes that become units."""
        from runner.strategy.parallel.context_blocks import context_faults
        from runner.strategy.parallel.expert_modules import expert_faults
        from runner.strategy.parallel.plan_faults import plan_faults

        axes = self.axes(spec.world_size)
        ranks, experts = axes.size([Axis.TENSOR]), axes.size([Axis.EXPERT])
        if ranks > 1:
            yield partial(plan_faults, plan=self.tensor_plan, ranks=ranks)
        if axes.size([Axis.CONTEXT]) > 1:
            plan = self.tensor_plan if ranks > 1 else None
            experts_compiled = self.expert_modules if spec.compile.what is Compiled.BLOCKS else None
            yield partial(context_faults, classes=self.shards.wrap_classes, plan=plan, compiled=experts_compiled)
        if experts > 1:
            shards = axes.size(SHARERS_OF_EXPERTS)
            yield partial(expert_faults, patterns=self.expert_modules, ranks=experts, shards=shards)
        yield from self.pipelining.model_checks(axes.size([Axis.PIPELINE]))
        yield from self.shards.model_checks()

    def axes(self, num_ranks: int) -> Axes:
        """The mesh of so many ranks.

        Raises:
            ValueError: the sizes do not multiply to the number of ranks.
        """
        return axes_of(self._sizes(), num_ranks)

    def place(self, builder: Builder, world: World) -> Placed:
        """This rank's part of the model."""
        if world.size == 1:
            return self.shards.place_alone(builder, world)
        if world.axes.size([Axis.PIPELINE]) > 1:
            return self._place_stages(builder, world)[0]
        return self._place_parts(builder, world)[0]

    def prepare(self, builder: Builder, world: World) -> Trainable:
        """This rank's part of the model, and an optimizer over it."""
        from runner.strategy.common.module_trainable import ModuleTrainable

        if world.size == 1:
            return ModuleTrainable(self.shards.place_alone(builder, world), builder, world)
        from runner.strategy.parallel.trainable import PartsTrainable

        if world.axes.size([Axis.PIPELINE]) > 1:
            return self._prepare_stages(builder, world)
        placed, no_sync = self._place_parts(builder, world)
        return PartsTrainable(placed, builder, world, no_sync=no_sync)

    def _sizes(self) -> dict[Axis, int | None]:
        """The ranks along each axis; None for auto."""
        given = {
            Axis.REPLICATE: self.replicate,
            Axis.SHARD: self.shard,
            Axis.EXPERT: self.expert,
            Axis.CONTEXT: self.context,
            Axis.TENSOR: self.tensor,
            Axis.PIPELINE: self.pipeline,
        }
        return dict.fromkeys(Axis, 1) | {axis: size_of(axis, value) for axis, value in given.items()}

    def _context_faults(self, spec: "RunSpec") -> Iterable[Fault]:
        """Report keys that parts of sequences do not support."""
        rule = "with strategy.context"
        if spec.compile.what is Compiled.MODEL:
            way_out = "torch.compile wants a gradient for every divided tensor that leaves a graph. Use blocks."
            yield Fault(key="compile.what", message=f"model does not work {rule}: {way_out}")
        if self.sequence_parallel:
            rule = "true divides sequences among tensor ranks, too. Use false with strategy.context."
            yield Fault(key="strategy.sequence_parallel", message=rule)
        if self.shards.build is Build.RANK_0:
            rule = "rank_0 sends weights to shards, but strategy.context shares them as well. Use every_rank."
            yield Fault(key="strategy.build", message=rule)

    def _pipeline_faults(self) -> Iterable[Fault]:
        """Report keys that a pipeline does not support."""
        rule = "with strategy.pipeline"
        if self.shards.build is Build.RANK_0:
            way_out = "To build without memory for the others', use every_rank and strategy.build_own_stages=true."
            yield Fault(key="strategy.build", message=f"rank_0 does not work {rule}, whose ranks differ. {way_out}")
        if self.shards.sync_each_round:
            way_out = "A pipeline reduces gradients after the last micro-batch: use false."
            yield Fault(key="strategy.sync_each_round", message=f"true does not work {rule}. {way_out}")
        if self.shards.wrap is Wrap.SIZE:
            way_out = "The modules around the blocks, which end early, would be units: use classes."
            yield Fault(key="strategy.wrap", message=f"size does not work {rule}. {way_out}")

    def _prepare_stages(self, builder: Builder, world: World) -> Trainable:
        """This rank's stages, and an optimizer over them."""
        from runner.strategy.parallel.place_stages import with_same_groups
        from runner.strategy.parallel.trainable import PartsTrainable

        placed, stages = self._place_stages(builder, world)
        return PartsTrainable(
            placed,
            with_same_groups(builder, stages.trained),
            world,
            no_sync=nullcontext,
            rounds=stages.forward_backward,
            holders=stages.shared.copies,
        )

    def _place_stages(self, builder: Builder, world: World) -> "tuple[PlacedParts, PlacedStages]":
        """This rank's stages, each split, recomputed, compiled and sharded as a model would be."""
        from runner.strategy.parallel.call_by_call import call_once
        from runner.strategy.parallel.place_stages import StageSettings, place_stages
        from runner.strategy.parallel.trainable import PlacedParts

        predict = builder.loss if builder.predicts else None
        loss = builder.loss if predict is None else call_once
        builder, context = replace(builder, loss=loss), self._context_plan(world)
        if context is not None:
            builder = replace(builder, loss=context.whole_loss(loss))
        plan, builder = self._tensor_plan(builder, world)
        given = StageSettings(
            loss=loss,
            predict=predict,
            pipelining=self.pipelining,
            shards=self.shards,
            sharing=self._sharing(world),
            plan=plan,
            context=context,
            experts=self._expert_plan(world),
            expert_modules=self.expert_modules,
        )
        stages = place_stages(builder, world, given)
        return PlacedParts(stages, _computing(context, plan)), stages

    def _tensor_plan(self, builder: Builder, world: World) -> "tuple[TensorPlan | None, Builder]":
        """The plan for weight matrices, if tensor ranks split them, and a builder with a loss hook that fits it."""
        from runner.strategy.parallel.tensor import TensorPlan
        from runner.strategy.parallel.whole_loss import whole_loss

        if world.axes.size([Axis.TENSOR]) == 1:
            return None, builder
        mesh = world.mesh()[Axis.TENSOR]
        plan = TensorPlan(self.tensor_plan, mesh, sequence_parallel=self.sequence_parallel)
        return plan, replace(builder, loss=whole_loss(builder.loss))

    def _expert_plan(self, world: World) -> "ExpertPlan | None":
        """Which experts are where, if ranks divide them."""
        from runner.strategy.parallel.expert import ExpertPlan

        return ExpertPlan(self.expert_modules, world.mesh()) if world.axes.size([Axis.EXPERT]) > 1 else None

    def _context_plan(self, world: World) -> "ContextPlan | None":
        """How sequences are divided, if ranks have parts of them."""
        from runner.strategy.parallel.context import ContextPlan

        if world.axes.size([Axis.CONTEXT]) == 1:
            return None
        return ContextPlan(world.mesh()[Axis.CONTEXT], self.shards.wrap_classes, self.expert_modules)

    def _sharing(self, world: World) -> "DeviceMesh | None":
        """The ranks that share parameters or hold replicas of them; None if there are none."""
        from runner.strategy.parallel.expert import sharing_mesh

        axes = world.axes
        return sharing_mesh(world.mesh()) if axes.size(SHARERS) > 1 or axes.data_ranks > 1 else None

    def _place_parts(self, builder: Builder, world: World) -> "tuple[PlacedParts, NoSync]":
        """Build the model, split it by tensor plan and experts, divide its sequences, recompute, compile, shard.

        Returns:
            The parts, and what all micro-batches of a step but the last leave out.
        """
        from runner.strategy.common.loss_module import LossModule
        from runner.strategy.common.named_state import unchanged
        from runner.strategy.fsdp.trainable import PlacedShards
        from runner.strategy.parallel.trainable import PlacedParts

        context = self._context_plan(world)
        if context is not None:
            builder = replace(builder, loss=context.whole_loss(builder.loss))
        plan, builder = self._tensor_plan(builder, world)
        experts = self._expert_plan(world)

        def build() -> "Module":
            model = builder.build_model()
            if plan is not None:
                plan.apply(model)
            if experts is not None:
                experts.apply(model)
            if context is not None:
                context.apply(model)
            builder.recompute(model)
            builder.compile(model)
            return model

        as_stored = unchanged if plan is None else plan.as_stored
        if (sharing := self._sharing(world)) is not None:
            apart = None if experts is None else experts.apart
            shards, units = self.shards.place_shards(build, builder, world, sharing, as_stored=as_stored, apart=apart)
            no_sync = self.shards.no_sync(units, world.axes)
        else:
            root = LossModule(build().to(world.device), builder.loss)
            shards = PlacedShards(root, [], builder, world, sync_buffers=False, as_stored=as_stored)
            no_sync = nullcontext
        return PlacedParts(shards, _computing(context, plan)), no_sync


def _computing(context: "ContextPlan | None", plan: "TensorPlan | None") -> NoSync:
    """The context of every forward and backward."""
    return next((one.computing for one in (context, plan) if one is not None), nullcontext)
