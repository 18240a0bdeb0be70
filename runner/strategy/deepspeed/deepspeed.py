"""DeepSpeed's ZeRO (Rajbhandari et al., SC 2020), with offload (Ren et al., ATC 2021; Rajbhandari et al., SC 2021) and
ZeRO++ (Wang et al., 2023), run by the DeepSpeed library.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, final

from runner.config.files import JsonFile
from runner.errors import Fault
from runner.model.blocks import class_faults
from runner.protocols import Axes, Axis, Builder, Clip, Placed, Precision, Trainable, World
from runner.strategy.deepspeed import library
from runner.strategy.deepspeed.check import config_faults, offload_faults, run_faults, stage_faults
from runner.strategy.deepspeed.config import (
    ZERO,
    Entry,
    Source,
    drop_unset,
    merge_sources,
    run_entries,
    runner_entries,
    spec_entries,
    user_entries,
)

if TYPE_CHECKING:
    from torch.nn import Module

    from runner.config.run_spec import RunSpec
    from runner.strategy.deepspeed.engine import Settings


class Place(Enum):
    """Where a tensor is kept while it is not in use."""

    none = "none"
    cpu = "cpu"
    nvme = "nvme"


@final
@dataclass(frozen=True, kw_only=True)
class DeepSpeed:
    """ZeRO: partitions optimizer state (stage 1), also gradients (stage 2), also parameters (stage 3) among ranks."""

    stage: int = 1
    """1, 2 or 3. Without partitioning, use strategy=ddp."""
    zero_init: bool = False
    """Partition parameters while the model is built (zero.Init), so that no rank ever holds all of it; stage 3."""
    offload_optimizer: Place = Place.none
    """Where the optimizer's state is kept; unless none, the CPU steps it. nvme needs stage 3."""
    offload_param: Place = Place.none
    """Where parameters are kept while not in use; stage 3."""
    optimizer_nvme_path: str | None = None
    """Directory on the disk, for offload_optimizer=nvme."""
    param_nvme_path: str | None = None
    """Directory on the disk, for offload_param=nvme."""
    pin_memory: bool | None = None
    """Page-locked host memory for offload; null = unless the device is the CPU."""
    own_optimizer: str | None = None
    """Name of a DeepSpeed optimizer to use, with the settings of the group `optimizer`; null = torch's."""
    reduce_bucket_size: int | None = None
    """Gradient elements per reduction bucket; null = DeepSpeed's."""
    allgather_bucket_size: int | None = None
    """Weight elements per all-gather bucket, stages 1 and 2; null = DeepSpeed's."""
    prefetch_bucket_size: int | None = None
    """Elements prefetched ahead of use, stage 3; null = DeepSpeed's."""
    param_persistence_threshold: int | None = None
    """Parameters with fewer elements stay unpartitioned on every rank, stage 3; null = DeepSpeed's."""
    max_live_parameters: int | None = None
    """Most parameter elements gathered at one time, stage 3; null = DeepSpeed's."""
    max_reuse_distance: int | None = None
    """A parameter needed again within this many elements is not released, stage 3; null = DeepSpeed's."""
    sub_group_size: int | None = None
    """Elements that the optimizer updates at a time, stage 3; null = DeepSpeed's."""
    overlap_comm: bool | None = None
    """Exchange gradients during backward; null = DeepSpeed's choice."""
    contiguous_gradients: bool | None = None
    """Copy gradients into one contiguous buffer as they are produced; null = DeepSpeed's choice."""
    round_robin_gradients: bool | None = None
    """Assign parameters to ranks round-robin, stages 1 and 2; null = DeepSpeed's choice."""
    hpz_partition_size: int | None = None
    """ZeRO++: ranks that share a second copy of the parameters, usually the ranks of a node; null = off."""
    quantized_weights: bool | None = None
    """ZeRO++: gather weights as 8-bit integers; CUDA; null = off."""
    quantized_gradients: bool | None = None
    """ZeRO++: exchange gradients as 4-bit integers; CUDA; null = off."""
    moe_leaf_modules: list[str] = field(default_factory=list)
    """Class names of mixture-of-experts blocks, gathered as one: ranks may use different experts; stage 3."""
    sync_buffers: bool = True
    """Before each step, give every rank the buffers of rank 0."""
    config_file: JsonFile | None = None
    """A DeepSpeed configuration in JSON; "auto" takes the value from the recipe; null = none."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """More of DeepSpeed's configuration, written in the recipe."""

    def __post_init__(self) -> None:
        if self.stage == 0:
            raise ValueError("stage=0 partitions nothing, like strategy=ddp. Use that.")
        if self.stage not in (1, 2, 3):
            raise ValueError(f"stage={self.stage} must be 1, 2 or 3.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Report every fault that can be found without DeepSpeed and without a device."""
        if not library.is_installed():
            rule = f"this strategy needs DeepSpeed, which is not installed. {library.INSTALL}; or use another strategy."
            yield Fault(key="strategy", message=rule)
        yield from run_faults(spec)
        yield from stage_faults(vars(self), self.stage)
        sources = [spec_entries(spec), *self._sources(spec.precision, spec.clip)]
        wrong = list(config_faults(sources))
        yield from wrong or offload_faults(merge_sources(sources), spec)

    def model_checks(self, spec: "RunSpec") -> "Iterable[Callable[[Module], Iterable[Fault]]]":
        """Check that the model has the classes named in `moe_leaf_modules`."""
        if self.moe_leaf_modules:
            yield partial(class_faults, classes=self.moe_leaf_modules, key="strategy.moe_leaf_modules")

    def axes(self, num_ranks: int) -> Axes:
        """One axis, along which both state and data are sharded."""
        return Axes(names=(Axis.SHARD,), sizes=(num_ranks,), data=(Axis.SHARD,))

    def place(self, builder: Builder, world: World) -> Placed:
        """The full model on every rank; under stage 3 its parameters are partitioned (ZeRO-Inference)."""
        from runner.strategy.common.placed_module import place_whole
        from runner.strategy.deepspeed.engine import place

        settings = self._settings(builder)
        if settings.is_partitioned:
            with library.variables(world):
                return place(settings, builder, world)
        return place_whole(builder, world)

    def prepare(self, builder: Builder, world: World) -> Trainable:
        """A DeepSpeed engine over the user's model, whose float32 weights are exactly those of the model hook."""
        from runner.strategy.deepspeed.engine import prepare

        with library.variables(world):
            return prepare(self._settings(builder), builder, world)

    def _settings(self, builder: Builder) -> "Settings":
        from runner.strategy.deepspeed.engine import Settings

        return Settings(
            merged=merge_sources(self._sources(builder.precision, builder.clip)),
            zero_init=self.zero_init,
            leaf_modules=self.moe_leaf_modules,
            sync_buffers=self.sync_buffers,
        )

    def _sources(self, precision: Precision, clip: Clip) -> list[Source]:
        """Every source of DeepSpeed's configuration."""
        sources: list[Source] = [run_entries(precision, clip), runner_entries(), self._fields()]
        sources.append(user_entries(self.config, "strategy.config."))
        if self.config_file is not None:
            sources.append(user_entries(self.config_file.parsed, f"{self.config_file.path}: "))
        return sources

    def _fields(self) -> Source:
        """Entries from this strategy's own fields; fields that are null give none."""
        unset = Place.none
        return drop_unset(
            {
                ZERO + "stage": Entry(self.stage, "strategy.stage"),
                ZERO + "offload_optimizer.device": Entry(
                    None if self.offload_optimizer is unset else self.offload_optimizer.value,
                    "strategy.offload_optimizer",
                ),
                ZERO + "offload_optimizer.nvme_path": Entry(self.optimizer_nvme_path, "strategy.optimizer_nvme_path"),
                ZERO + "offload_param.device": Entry(
                    None if self.offload_param is unset else self.offload_param.value, "strategy.offload_param"
                ),
                ZERO + "offload_param.nvme_path": Entry(self.param_nvme_path, "strategy.param_nvme_path"),
                "optimizer.type": Entry(self.own_optimizer, "strategy.own_optimizer"),
                ZERO + "reduce_bucket_size": Entry(self.reduce_bucket_size, "strategy.reduce_bucket_size"),
                ZERO + "allgather_bucket_size": Entry(self.allgather_bucket_size, "strategy.allgather_bucket_size"),
                ZERO + "stage3_prefetch_bucket_size": Entry(self.prefetch_bucket_size, "strategy.prefetch_bucket_size"),
                ZERO + "stage3_param_persistence_threshold": Entry(
                    self.param_persistence_threshold, "strategy.param_persistence_threshold"
                ),
                ZERO + "stage3_max_live_parameters": Entry(self.max_live_parameters, "strategy.max_live_parameters"),
                ZERO + "stage3_max_reuse_distance": Entry(self.max_reuse_distance, "strategy.max_reuse_distance"),
                ZERO + "sub_group_size": Entry(self.sub_group_size, "strategy.sub_group_size"),
                ZERO + "overlap_comm": Entry(self.overlap_comm, "strategy.overlap_comm"),
                ZERO + "contiguous_gradients": Entry(self.contiguous_gradients, "strategy.contiguous_gradients"),
                ZERO + "round_robin_gradients": Entry(self.round_robin_gradients, "strategy.round_robin_gradients"),
                ZERO + "zero_hpz_partition_size": Entry(self.hpz_partition_size, "strategy.hpz_partition_size"),
                ZERO + "zero_quantized_weights": Entry(self.quantized_weights, "strategy.quantized_weights"),
                ZERO + "zero_quantized_gradients": Entry(self.quantized_gradients, "strategy.quantized_gradients"),
            }
        )
