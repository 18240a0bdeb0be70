"""Opening the training source of a run, whichever kind the data hook returned."""

from collections.abc import Iterator
from typing import Any

from torch import device
from torch.utils.data import default_collate

from runner.config.run_spec import Cut, Reader, RunSpec
from runner.data.datasets import is_stream, num_items
from runner.data.dispatch import DispatchedSource, for_all_ranks
from runner.data.indexed import IndexedSource
from runner.data.lengths import lengths_of
from runner.data.moving import mover
from runner.data.sampled import SampledSource
from runner.data.steps import Parts, RankSteps
from runner.data.streamed import StreamedSource
from runner.errors import DataError
from runner.protocols import (
    BatchSampler,
    Data,
    IndexedSteps,
    LoaderOptions,
    OpensSource,
    Order,
    Source,
    SourceRequest,
    StepBatches,
    StepPlan,
    World,
)
from runner.world.solo import SoloWorld

MEMBERS = ("position", "__iter__", "state_dict", "load_state_dict")
"""What a Source must have."""


def loader_options(spec: RunSpec, data: Data, world: World) -> LoaderOptions:
    """What recipe, data hook and hardware say about loading."""
    return LoaderOptions(
        collate=data.collate or default_collate,
        device=world.device,
        workers=spec.loader.workers,
        prefetch=spec.loader.prefetch,
        pin_memory=spec.hardware.pins_memory,
        move=mover(world.device, asynchronous=spec.hardware.pins_memory),
    )


def open_source(spec: RunSpec, data: Data, world: World) -> Source:
    """The training source of this rank, at its beginning. Collective.

    Args:
        world: the ranks that read different items.

    Raises:
        DataError: the data hook's own source is none, or its dataset has too few items for a step.
    """
    options = loader_options(spec, data, world)
    if spec.loader.source is Reader.EACH_RANK or world.size == 1:
        return _open(spec, data, world, options)
    of_all = _open(spec, data, SoloWorld(device("cpu")), for_all_ranks(options, world.size))
    return DispatchedSource(of_all, world, options)


def _open(spec: RunSpec, data: Data, world: World, options: LoaderOptions) -> Source:
    request = SourceRequest(
        step_items=spec.batch.items,
        micro_items=spec.batch.micro_items,
        world=world,
        seed=spec.run.seed,
        order=spec.order,
        loader=options,
    )
    if spec.batch.cut is not Cut.EVEN and (isinstance(data.train, OpensSource) or is_stream(data.train)):
        rule = "has no items by index whose lengths could be compared. Use batch.cut=even."
        raise DataError(f"the data hook's 'train' ({type(data.train).__name__}) {rule}")
    if isinstance(data.train, OpensSource):
        return _checked(data.train.open_source(request), opener=data.train)
    if is_stream(data.train):
        return StreamedSource(
            data.train,
            "train",
            step_items=request.step_items,
            micro_items=request.micro_items,
            world=world,
            seed=request.seed,
            options=request.loader,
        )
    num_items(data.train, "train")  # it must have a length
    order: Any = spec.order.build(data.train, seed=request.seed)
    if not isinstance(order, Order):
        if not isinstance(order, BatchSampler):
            rule = "which is neither an order (num_items, indices) nor a batch sampler (__iter__)"
            raise DataError(
                f"{type(spec.order).__name__}.build returned a {type(order).__name__}, {rule}: docs/data.md."
            )
        if spec.batch.cut is not Cut.EVEN:
            rule = "gives batches, which are micro-batches as they are. Use batch.cut=even."
            raise DataError(f"the order ({type(order).__name__}) {rule}")
        return SampledSource(data.train, order, request)
    _check_items(order, request)
    lengths = lengths_of(data, micro_tokens=spec.batch.micro_tokens) if spec.batch.cut is Cut.BY_LENGTH else None
    steps = RankSteps.of(order, request, lengths=lengths, micro_tokens=spec.batch.micro_tokens)
    return IndexedSource(data.train, steps, request)


def _check_items(order: Order, request: SourceRequest) -> None:
    """See that an epoch has enough items for one step: each would be shorter than it says."""
    items, ranks = order.num_items, Parts.of(request.world, request.loader).ranks
    if items >= request.step_items:
        return
    most = items // ranks * ranks
    way_out = f"Use batch.items={most}" if most else f"Use at most {items} data ranks"
    raise DataError(
        f"an epoch of the data hook's 'train' dataset has {items} items, fewer than one step of "
        f"batch.items={request.step_items}: every step would be short. {way_out}, or return more items."
    )


def endless(source: Source) -> Iterator[StepBatches]:
    """The source's steps.

    Raises:
        DataError: they ended.
    """
    yield from source
    raise DataError(
        f"the training source ({type(source).__name__}) ended after {source.position} items, but a run goes on until "
        "run.steps. Let its __iter__ begin again at its first item, or lower run.steps."
    )


def plan_at(source: Source, position: int) -> StepPlan | None:
    """The items of this rank in the step that begins at a position; None if the source's items have no index."""
    return source.plan_at(position) if isinstance(source, IndexedSteps) else None


def _checked(source: Any, *, opener: OpensSource) -> Source:
    missing = [name for name in MEMBERS if name not in dir(source)]
    if missing:
        raise DataError(
            f"{type(opener).__name__}.open_source returned a {type(source).__name__} without {', '.join(missing)}. A "
            f"source has {', '.join(MEMBERS)}: see runner.protocols.Source."
        )
    checked: Source = source
    return checked
