"""Distributed data parallel: Li et al. (VLDB 2020), by torch.nn.parallel."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar, cast, final

from runner.config.of_blocks import Compiled
from runner.errors import Fault
from runner.protocols import Axes, Axis, Builder, Trainable, World
from runner.strategy.ddp.exchange import POWER_SGD, CommHook, CommWrapper, Exchange

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec
    from runner.strategy.common.placed_module import PlacedModule


@final
@dataclass(frozen=True, kw_only=True)
class DDP:
    """The model on every rank; gradients are averaged over ranks while backward is still running."""

    compiles_steps: ClassVar[bool] = True
    spares_compiler: ClassVar[bool] = True

    bucket_mib: float = 25.0
    """MiB of gradients per all-reduce."""
    sync_buffers: bool = True
    """Broadcast the buffers of rank 0 before each forward."""
    find_unused_parameters: bool = False
    """After each forward, look for parameters that were not used; needed if some are not used in every step."""
    static_graph: bool = False
    """The same parameters are used in every step: lets DDP order buckets once."""
    gradient_as_bucket_view: bool = True
    """Make gradients views of the buckets, which saves one copy of them."""
    bucket_mibs: list[float] = field(default_factory=list)
    """MiB of each bucket, in the order in which they fill; empty = bucket_mib for all."""
    init_sync: bool = True
    """Before the first step, compare shapes and broadcast the weights of rank 0, though they are equal already."""
    skip_unused_parameters: bool = False
    """Exchange nothing for parameters that no rank uses; they must be the same in all steps."""
    batched_grad_copy: bool = False
    """Copy all gradients of a bucket into it at once: for many small parameters."""
    sync_each_round: bool = False
    """Exchange gradients in every micro-batch, not only in the last of a step."""
    comm_hook: CommHook = CommHook.NONE
    """What ranks exchange in place of each bucket of gradients."""
    comm_wrapper: CommWrapper = CommWrapper.NONE
    """The dtype in which PowerSGD's tensors are exchanged."""
    matrix_approximation_rank: int = 1
    """Columns of PowerSGD's factors: more = more traffic, less error."""
    start_powerSGD_iter: int = 1000  # noqa: N815  as PowerSGDState calls it
    """Steps before PowerSGD begins, with uncompressed gradients."""
    min_compression_rate: float = 2.0
    """Matrices that PowerSGD would compress by less than this factor are exchanged uncompressed."""
    use_error_feedback: bool = True
    """Add the compression error of a step to the next; takes one more copy of the gradients."""
    warm_start: bool = True
    """Start from the factors of the previous step."""
    orthogonalization_epsilon: float = 0.0
    """Added to the norm of each column, in case one is all zeros."""
    random_seed: int = 0
    """Seed of the initial factors; the same on all ranks."""
    compression_stats_logging_frequency: int = 10_000
    """Steps between log lines with compression statistics."""
    batch_tensors_with_same_shape: bool = False
    """Factor matrices of the same shape in one batch."""

    def __post_init__(self) -> None:
        if not self.bucket_mib > 0:
            raise ValueError(f"bucket_mib={self.bucket_mib} must be positive.")
        if any(not mib > 0 for mib in self.bucket_mibs):
            raise ValueError(f"bucket_mibs={self.bucket_mibs} must all be positive. Use [] for bucket_mib.")
        for name in ("matrix_approximation_rank", "compression_stats_logging_frequency"):
            if vars(self)[name] < 1:
                raise ValueError(f"{name}={vars(self)[name]} must be at least 1.")
        for name in ("min_compression_rate", "start_powerSGD_iter", "orthogonalization_epsilon"):
            if vars(self)[name] < 0:
                raise ValueError(f"{name}={vars(self)[name]} must not be negative.")
        if self.skip_unused_parameters and not (self.find_unused_parameters or self.static_graph):
            rule = "skip_unused_parameters=true needs find_unused_parameters=true or static_graph=true: else DDP"
            raise ValueError(f"{rule} does not know which are unused.")
        if problem := self._exchange.contradiction({name: vars(DDP)[name] for name in POWER_SGD}):
            raise ValueError(problem)
        if self._exchange.is_factored and self.sync_each_round:
            rule = "sync_each_round=true would compress the gradients accumulated so far again in each micro-batch."
            raise ValueError(f"{rule} With comm_hook={self.comm_hook.value} use false.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Report what a compiled step cannot do, and PowerSGD's error feedback under a loss scale."""
        if spec.compile.what is Compiled.STEP:
            yield from self._outside_a_graph()
        if self._exchange.is_factored and self.use_error_feedback and spec.precision.scaler().scales:
            rule = (
                f"{self.comm_hook.value} adds the compression error of a step to the next, so that one overflow under "
                "this precision's loss scale would corrupt all later steps. Use precision=bf16 or fp32, or "
                "strategy.use_error_feedback=false."
            )
            yield Fault(key="strategy.comm_hook", message=rule)

    def _outside_a_graph(self) -> Iterator[Fault]:
        """Report settings for which gradients are exchanged in another way than as sums at the end of a step."""
        left = {
            "find_unused_parameters": (self.find_unused_parameters, "false"),
            "sync_each_round": (self.sync_each_round, "false"),
            "comm_hook": (self.comm_hook is not CommHook.NONE, "none"),
        }
        for name, (is_set, way_out) in left.items():
            if is_set:
                rule = f"compile.what=step sums up gradients inside its graph, without it. Use {way_out}"
                yield Fault(key=f"strategy.{name}", message=f"{rule}, or compile.what=model.")

    def axes(self, num_ranks: int) -> Axes:
        """One axis of replicas."""
        return Axes(names=(Axis.REPLICATE,), sizes=(num_ranks,), data=(Axis.REPLICATE,))

    def place(self, builder: Builder, world: World) -> "PlacedModule":
        """The full model on every rank, without DDP's wrapper."""
        from runner.strategy.common.placed_module import place_whole

        return place_whole(builder, world)

    def prepare(self, builder: Builder, world: World) -> Trainable:
        """Wrap the loss in DDP rather than the model, so that hooks always get the user's own module."""
        from runner.strategy.common.loss_module import LossModule
        from runner.strategy.common.module_trainable import ModuleTrainable, train_alone
        from runner.strategy.ddp.comm_hooks import install
        from runner.strategy.ddp.wrapper import DataParallel

        if world.size == 1:
            return train_alone(builder, world)
        placed = self.place(builder, world)
        exchange = self._exchange
        wrapped = DataParallel(
            LossModule(placed.model, builder.loss),
            bucket_cap_mb=self.bucket_mib,
            forward_sync_buffers=self.sync_buffers,
            find_unused_parameters=self.find_unused_parameters,
            static_graph=self.static_graph,
            gradient_as_bucket_view=self.gradient_as_bucket_view,
            bucket_cap_mb_list=cast("list[int]", self.bucket_mibs) or None,  # takes fractions too
            init_sync=self.init_sync,
            skip_all_reduce_unused_params=self.skip_unused_parameters,
            batched_grad_copy=self.batched_grad_copy,
        )
        trainable = ModuleTrainable(
            placed,
            builder,
            world,
            forward=wrapped,
            no_sync=nullcontext if self.sync_each_round else wrapped.no_sync,
            averaged=world.size,
            narrow_exchange=exchange.is_narrow,
            stateful=install(exchange, wrapped),
        )
        if builder.step_graphs is None:
            return trainable
        from runner.strategy.common.replicas import Replicas
        from runner.strategy.common.step_graph import GraphTrainable

        replicas = partial(
            Replicas,
            placed.model,
            world=world,
            group=world.mesh().get_group(Axis.REPLICATE),
            bucket_mibs=self.bucket_mibs or [self.bucket_mib],
            sync_buffers=self.sync_buffers,
        )
        return GraphTrainable(trainable, placed, builder, builder.step_graphs, replicas=replicas)

    @property
    def _exchange(self) -> Exchange:
        settings = {name: vars(self)[name] for name in POWER_SGD}
        return Exchange(hook=self.comm_hook, wrapper=self.comm_wrapper, power_sgd=settings)
