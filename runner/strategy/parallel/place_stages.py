"""Builds the stages of a rank: its part of the model, with the initial weights that one process would have."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import torch
from torch.nn import Module, Parameter

from runner.errors import ModelError, SpecError
from runner.protocols import Axis, Builder, World
from runner.strategy.common.named_state import AsStored, distinct_tensors, unchanged
from runner.strategy.common.placed_module import PlacedModule
from runner.strategy.fsdp.settings import ShardSettings
from runner.strategy.parallel.build_own import build_own
from runner.strategy.parallel.outline import Hook, Outline, copy_modules, hide, sequence_parts
from runner.strategy.parallel.pipeline import PlacedStages
from runner.strategy.parallel.schedule import PipelineSettings
from runner.strategy.parallel.shared import SharedParameters
from runner.strategy.parallel.split import Cut, cut_model, holders_of, split_faults
from runner.strategy.parallel.stage_model import StageModel, remove_absent

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule

    from runner.strategy.parallel.context import ContextPlan
    from runner.strategy.parallel.expert import ExpertPlan
    from runner.strategy.parallel.tensor import TensorPlan


@final
@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """How a model is divided along all axes of a run with a pipeline."""

    loss: Hook
    """The user's hook, for the run without values."""
    predict: Hook | None = None
    """A predict hook, whose calls of the model are what `loss` is called for; None if there is none."""
    pipelining: PipelineSettings
    """How it is cut into stages."""
    shards: ShardSettings
    """How the stages are sharded."""
    sharing: "DeviceMesh | None"
    """The ranks that share a stage or replicate it; None if it is on one rank."""
    plan: "TensorPlan | None"
    """How weight matrices are split; None if they are not."""
    context: "ContextPlan | None"
    """How sequences are divided; None if they are not."""
    experts: "ExpertPlan | None"
    """How experts are divided; None if they are not."""
    expert_modules: Sequence[str]
    """Patterns of the names of modules that hold experts; empty = those of `runner.model.experts`."""

    def divide(self, tree: Module, builder: Builder) -> None:
        """Divide what there is of a model by the plans; recompute and compile its blocks."""
        if self.plan is not None:
            self.plan.apply(tree)
        if self.experts is not None:
            self.experts.apply(tree)
        if self.context is not None:
            self.context.apply(tree)
        builder.recompute(tree)
        builder.compile(tree)

    def shard(self, root: StageModel, builder: Builder, world: World) -> "list[FSDPModule]":
        """Shard a stage, if there is somebody to share it with."""
        if self.sharing is None:
            return []
        apart = {} if self.experts is None else self.experts.apart(root.model)
        units = self.shards.shard_module(root, root.model, builder, world, self.sharing, apart=apart)
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)  # every micro-batch of the step needs it again
        return units


def place_stages(builder: Builder, world: World, given: StageSettings) -> PlacedStages:
    """Build this rank's stages: split by the plans, recompute, compile, shard. Collective."""
    pipeline, settings = world.along(Axis.PIPELINE), given.pipelining
    model = _build(builder, settings, pipeline)
    cut = _cut(model, settings, pipeline)
    holders = holders_of(model, cut)
    shapes = {name: tuple(tensor.shape) for name, tensor in distinct_tensors(model)}
    trained = {name: tensor.requires_grad for name, tensor in model.named_parameters()}
    outline = Outline(
        model,
        cut,
        holders,
        given.loss,
        world.device,
        experts=given.expert_modules,
        plan=given.plan,
        context=given.context,
    )
    own = settings.stages_of(pipeline.rank, pipeline.size)
    if given.sharing is not None:
        _check_can_be_sharded(holders, trained, own)
    trees = [model] if len(own) == 1 else [copy_modules(model) for _ in own]
    roots = [
        _stage(tree, index, cut, holders, outline, builder, world, given)
        for index, tree in zip(own, trees, strict=True)
    ]
    units = [unit for root in roots for unit in given.shard(root, builder, world)]
    here = trees[0] if len(own) == 1 else _together(model, trees, holders, own, world)
    held = {name for name, _ in distinct_tensors(here)}
    ranks_of = {
        name: tuple(sorted({settings.rank_of(stage, pipeline.size) for stage in holders[name]})) for name in trained
    }
    as_stored: AsStored = unchanged if given.plan is None else given.plan.as_stored
    elsewhere = {name: shape for name, shape in shapes.items() if name not in held}
    return PlacedStages(
        PlacedModule(here, builder, world.device, as_stored=as_stored, elsewhere=elsewhere),
        roots,
        units,
        outline,
        SharedParameters(here, ranks_of, world),
        settings,
        builder,
        world,
        num_stages=cut.num_stages,
        sync_buffers=given.sharing is not None and given.shards.sync_buffers,
        trained=trained,
        predict=given.predict,
    )


def _build(builder: Builder, settings: PipelineSettings, pipeline: World) -> Module:
    """The whole model on the host; or what this rank keeps of it, with the rest on the meta device."""
    if not settings.build_own_stages:
        return builder.build_model()

    def own(model: Module) -> set[str]:
        cut = _cut(model, settings, pipeline)
        stages = set(settings.stages_of(pipeline.rank, pipeline.size))
        return {name for name, holders in holders_of(model, cut).items() if holders & stages}

    return build_own(builder.build_model, own)


def _cut(model: Module, settings: PipelineSettings, pipeline: World) -> Cut:
    """Where the stages begin.

    Raises:
        SpecError: the model cannot be cut so.
    """
    num_stages = pipeline.size * settings.stages_per_rank
    if faults := list(split_faults(model, num_stages=num_stages, split=settings.split)):
        raise SpecError(*faults)
    return cut_model(model, num_stages=num_stages, split=settings.split)


def with_same_groups(builder: Builder, trained: Mapping[str, bool]) -> Builder:
    """Let the optimizer of every stage have the parameter groups of the whole model, some of them empty.

    Args:
        trained: the parameters of the whole model, in its order, and whether each requires a gradient.
    """

    def build(named: Iterable[tuple[str, Parameter]]) -> torch.optim.Optimizer:
        here = dict(named)
        places = {name: Parameter(torch.empty(0), needs) for name, needs in trained.items() if name not in here}
        optimizer = builder.build_optimizer((name, here.get(name, places.get(name))) for name in trained)  # type: ignore[misc]
        absent = set(map(id, places.values()))
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in absent]
        return optimizer

    return replace(builder, build_optimizer=build)


def _stage(
    tree: Module,
    index: int,
    cut: Cut,
    holders: Mapping[str, frozenset[int]],
    outline: Outline,
    builder: Builder,
    world: World,
    given: StageSettings,
) -> StageModel:
    """A stage on this rank's device, not sharded yet."""
    tensors = _named_tensors(tree)
    absent = {name: tensor for name, tensor in tensors.items() if index not in holders[name]}
    held = {
        piece: stage == index or not any(name.startswith(f"{piece}.") for name in absent)
        for piece, stage in cut.pieces.items()
    }
    remove_absent(tree, outline, absent, world.device)
    tree.to(world.device)
    given.divide(tree, builder)
    root = StageModel(tree, index, cut, builder.loss, world.device, sequence_parts(given.plan, given.context))
    root.install(held)
    return root


def _together(
    model: Module, trees: list[Module], holders: Mapping[str, frozenset[int]], own: list[int], world: World
) -> Module:
    """The modules of several stages as one model, which is never called: it has their parameters by name."""
    for name in list(_named_tensors(model)):
        owner, _, key = name.rpartition(".")
        module = model.get_submodule(owner)
        tree = next((tree for index, tree in zip(own, trees, strict=True) if index in holders[name]), None)
        here: Any = None if tree is None else tree.get_submodule(owner)
        for kind in ("_parameters", "_buffers"):
            if key in vars(module)[kind]:
                if here is None:
                    hide(module, key, None)
                else:
                    vars(module)[kind][key] = vars(here)[kind][key]
    return model


def _named_tensors(model: Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by every name of each."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(model.named_buffers(remove_duplicate=False))}


def _check_can_be_sharded(holders: Mapping[str, frozenset[int]], trained: Mapping[str, bool], own: list[int]) -> None:
    for name in trained:
        if len(holders[name] & set(own)) > 1:
            raise ModelError(
                f"{name} belongs to two stages on one rank, each of which would shard it. Use another "
                "strategy.schedule, stages_per_rank=1, or strategy.shard=1 and strategy.replicate=1."
            )
