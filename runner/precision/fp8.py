"""Large matrix multiplications in float8 with torchao: Micikevicius et al. (arXiv:2209.05433)."""

import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, final

from runner.errors import Fault, ModelError
from runner.precision.fp8_layers import Filter, describe
from runner.protocols import Dtypes, Hardware, Scaler

if TYPE_CHECKING:
    from torch.nn import Module

    from runner.config.run_spec import RunSpec

logger = logging.getLogger(__name__)


class Backend(Enum):
    """The library that implements float8."""

    TORCHAO = "torchao"
    """PyTorch's library; the only one that this option runs."""
    TRANSFORMER_ENGINE = "transformer_engine"
    """NVIDIA's library; it has an option of its own, precision=fp8_te."""
    MSAMP = "msamp"
    """Microsoft's library, no longer maintained; choosing it is an error that names the replacement."""


class Recipe(Enum):
    """The granularity of the scales that map values into float8's range, by torchao's names."""

    TENSORWISE = "tensorwise"
    """One scale per matrix: fastest."""
    ROWWISE = "rowwise"
    """One power-of-two scale per row: more accurate."""
    ROWWISE_WITH_GW_HP = "rowwise_with_gw_hp"
    """As rowwise, but weight gradients are not computed in float8: most accurate."""


class Level(Enum):
    """MS-AMP's optimization level: what it stores in eight bits."""

    O1 = "O1"
    """Weight gradients and their communication."""
    O2 = "O2"
    """O1 plus the optimizer's first moments."""


ADVICE = {
    Level.O1: "precision=fp8 and, to send gradients in 16 bits, strategy=ddp strategy.comm_hook=bf16",
    Level.O2: "precision=fp8 and strategy=fsdp, which shards the optimizer state instead of quantizing it",
}


@final
@dataclass(frozen=True, kw_only=True)
class FP8:
    """Weights in float32; chosen linear layers multiply in float8, everything else is as with precision=bf16."""

    backend: Backend = Backend.TORCHAO
    """The library that implements float8."""
    recipe: Recipe = Recipe.TENSORWISE
    """The granularity of the scales."""
    emulate: bool | None = None
    """Emulate float8, which is slow; null = only where the hardware does not support it."""
    include: list[str] = field(default_factory=list)
    """Name patterns of the layers to convert; empty = all."""
    exclude: list[str] = field(default_factory=list)
    """Name patterns of the layers not to convert."""
    min_features: int = 16
    """Do not convert a layer with fewer input or output features than this."""
    keep_first: bool = True
    """Do not convert the first linear layer."""
    keep_last: bool = True
    """Do not convert the last linear layer."""
    pad_inner_dim: bool = False
    """Zero-pad the inner dimension of matrix multiplications to a multiple of 16."""
    fsdp_float8_all_gather: bool = False
    """All-gather the converted weights in float8 under a sharding strategy."""
    round_scales_to_power_of_2: bool = False
    """Round scales down to powers of two."""
    enabled: bool = True
    """Enable autocast to bfloat16 for everything else."""
    cache: bool = True
    """Cache weight casts: cast a weight once per forward, not once per use."""
    float32_outputs: bool = True
    """Cast the model's outputs to float32 before the loss hook receives them."""
    optimization_level: Level = Level.O1
    """MS-AMP's level, for backend=msamp: selects the replacement that the error names."""

    def __post_init__(self) -> None:
        if self.backend is Backend.MSAMP:
            level = self.optimization_level
            rule = "backend=msamp: MS-AMP is no longer maintained and does not work with this version of torch."
            raise ValueError(f"{rule} Instead of level {level.value}, use {ADVICE[level]}.")
        if self.backend is Backend.TRANSFORMER_ENGINE:
            raise ValueError("backend=transformer_engine is an option of its own. Use precision=fp8_te.")
        if self.fsdp_float8_all_gather and self.recipe is not Recipe.TENSORWISE:
            rule = "fsdp_float8_all_gather=true needs one scale per matrix"
            raise ValueError(f"{rule}, but recipe={self.recipe.value}. Use recipe=tensorwise.")
        if self.min_features < 1:
            raise ValueError(f"min_features={self.min_features} must be at least 1.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Requires torchao, hardware with bfloat16 and, if emulate=false, hardware with float8."""
        import torch

        if importlib.util.find_spec("torchao") is None:
            rule = "fp8 needs torchao, which is not installed: pip install 'hydra-runner[fp8]'. Or use precision=bf16."
            yield Fault(key="precision", message=rule)
        if self.emulate is False and not spec.hardware.has_dtype(torch.float8_e4m3fn):
            rule = "false, but this hardware has no float8 (needs CUDA compute capability 8.9+). Use null or true."
            yield Fault(key="precision.emulate", message=rule)
        if not spec.hardware.has_dtype(torch.bfloat16):
            rule = "fp8 runs all other layers in bfloat16, which this hardware does not support. Use precision=fp32."
            yield Fault(key="precision", message=rule)

    @property
    def dtypes(self) -> Dtypes:
        """As precision=bf16: only layers that are converted compute in float8."""
        import torch

        return Dtypes(param=torch.bfloat16, weight=torch.float32, reduce=torch.float32)

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """Returns a torch.autocast to bfloat16 for everything but the float8 layers."""
        import torch

        return torch.autocast(device_type, torch.bfloat16, enabled=self.enabled, cache_enabled=self.cache)

    def scaler(self) -> Scaler:
        """Returns the unit scaler: each float8 matrix has a scale of its own."""
        from runner.precision.scaling import UNIT

        return UNIT

    def model_checks(self, spec: "RunSpec") -> "Iterable[Callable[[Module], Iterable[Fault]]]":
        """Some layer must be converted."""
        yield self._layer_faults

    def _layer_faults(self, model: "Module") -> Iterator[Fault]:
        choices = self._filter.choose(model)
        if all(layer.skip_reason for layer in choices):
            layers = "\n".join(describe(choices))
            rule = "precision=fp8 would convert no layer of this model. Use precision=bf16, or relax the filter:"
            yield Fault(key="precision", message=f"{rule}\n{layers}")

    def plan(self, build_model: "Callable[[], Module]") -> Iterable[str]:
        """Lists which layers are converted and why the others are not."""
        return describe(self._filter.choose(build_model()))

    def convert(self, model: "Module", hardware: Hardware) -> None:
        """Replaces each chosen linear layer by a float8 one with the same parameters.

        Raises:
            ModelError: no layer is chosen.
        """
        import torch

        from runner.precision.casting import cast_outputs_to_float32

        choices = self._filter.choose(model)
        chosen = {layer.name for layer in choices if not layer.skip_reason}
        if faults := list(self._layer_faults(model)):
            raise ModelError(faults[0].message)
        emulate = not hardware.has_dtype(torch.float8_e4m3fn) if self.emulate is None else self.emulate
        if emulate:
            logger.info("float8 is emulated: the results are those of float8 hardware, but slower than bfloat16")
        _swap(model, chosen, self, emulate=emulate)
        for line in describe(choices):
            logger.info("%s", line)
        if self.float32_outputs:
            cast_outputs_to_float32(model)

    @property
    def _filter(self) -> Filter:
        return Filter(
            include=self.include,
            exclude=self.exclude,
            min_features=self.min_features,
            keep_first=self.keep_first,
            keep_last=self.keep_last,
        )


def _swap(model: "Module", chosen: set[str], part: FP8, *, emulate: bool) -> None:
    from torch.nn import Linear
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = replace(
        Float8LinearConfig.from_recipe_name(part.recipe.value),
        emulate=emulate,
        pad_inner_dim=part.pad_inner_dim,
        enable_fsdp_float8_all_gather=part.fsdp_float8_all_gather,
    )
    if part.round_scales_to_power_of_2:
        config = replace(config, round_scales_to_power_of_2=True)

    def is_chosen(module: "Module", name: str) -> bool:
        return isinstance(module, Linear) and name in chosen

    convert_to_float8_training(model, module_filter_fn=is_chosen, config=config)
