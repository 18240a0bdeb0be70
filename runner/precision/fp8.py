"""Large matrix products in float8: Micikevicius et al. (arXiv:2209.05433), by torchao."""

import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, final

import torch
from torch.nn import Linear, Module

from runner.errors import Fault, HookError
from runner.precision.fp8_layers import Filter, lines
from runner.precision.outputs import return_float32
from runner.precision.scaling import UNIT
from runner.protocols import Dtypes, Hardware, Scaler

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec

logger = logging.getLogger(__name__)


class Backend(Enum):
    """Whose float8."""

    TORCHAO = "torchao"
    """PyTorch's own."""
    TRANSFORMER_ENGINE = "transformer_engine"
    """NVIDIA's: an option of its own, precision=fp8_te."""
    MSAMP = "msamp"
    """Microsoft's, no longer maintained: choosing it gives advice."""


class Recipe(Enum):
    """How fine the scales are that bring numbers into float8's range. By torchao's own names."""

    TENSORWISE = "tensorwise"
    """One for each matrix: fastest."""
    ROWWISE = "rowwise"
    """One for each row, powers of two: more exact."""
    ROWWISE_WITH_GW_HP = "rowwise_with_gw_hp"
    """The same, with gradients of weights not in float8: most exact."""


class Level(Enum):
    """What MS-AMP kept in eight bits."""

    O1 = "O1"
    """Gradients of weights, and what ranks exchange."""
    O2 = "O2"
    """First moments of the optimizer, too."""


ADVICE = {
    Level.O1: "precision=fp8, and strategy=ddp strategy.comm_hook=bf16 for narrow gradients between ranks",
    Level.O2: "precision=fp8, and strategy=fsdp: it cuts what the optimizer keeps among ranks, not its bits",
}


@final
@dataclass(frozen=True, kw_only=True)
class FP8:
    """Weights in float32; the chosen linear layers multiply in float8, all else as in precision=bf16."""

    backend: Backend = Backend.TORCHAO
    """Whose."""
    recipe: Recipe = Recipe.TENSORWISE
    """How fine the scales are."""
    emulate: bool | None = None
    """Compute what float8 would give without hardware that has it, slowly; null = where the hardware has none."""
    include: list[str] = field(default_factory=list)
    """Patterns of the names of layers to convert; empty = all."""
    exclude: list[str] = field(default_factory=list)
    """Patterns of the names of layers to leave as they are."""
    min_features: int = 16
    """A layer with a side smaller than this stays as it is."""
    keep_first: bool = True
    """The first linear layer stays as it is."""
    keep_last: bool = True
    """The last linear layer stays as it is."""
    pad_inner_dim: bool = False
    """Fill inner sides up with zeros to a multiple of 16."""
    fsdp_float8_all_gather: bool = False
    """A sharding strategy gathers converted weights in float8."""
    round_scales_to_power_of_2: bool = False
    """Scales are powers of two."""
    enabled: bool = True
    """Let autocast to bfloat16 work on everything else."""
    cache: bool = True
    """Cast a weight once for each forward, not once for each use."""
    float32_outputs: bool = True
    """What the model returns reaches the loss hook as float32."""
    optimization_level: Level = Level.O1
    """Of backend=msamp."""

    def __post_init__(self) -> None:
        if self.backend is Backend.MSAMP:
            level = self.optimization_level
            rule = "backend=msamp: MS-AMP is no longer maintained and does not run beside this torch."
            raise ValueError(f"{rule} In place of its {level.value} use {ADVICE[level]}.")
        if self.backend is Backend.TRANSFORMER_ENGINE:
            raise ValueError("backend=transformer_engine has keys of its own. Use precision=fp8_te.")
        if self.fsdp_float8_all_gather and self.recipe is not Recipe.TENSORWISE:
            rule = "fsdp_float8_all_gather=true gathers matrices with one scale each"
            raise ValueError(f"{rule}, but recipe={self.recipe.value}. Use recipe=tensorwise.")
        if self.min_features < 1:
            raise ValueError(f"min_features={self.min_features} must be at least 1.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """The library must be there, and the hardware unless emulated."""
        if importlib.util.find_spec("torchao") is None:
            rule = "fp8 needs torchao, which is not installed: pip install 'hydra-runner[fp8]'. Or use precision=bf16."
            yield Fault(key="precision", message=rule)
        if self.emulate is False and not spec.hardware.has_dtype(torch.float8_e4m3fn):
            rule = "false, but this hardware has no float8 (CUDA has from compute capability 8.9 on). Use null or true."
            yield Fault(key="precision.emulate", message=rule)
        if not spec.hardware.has_dtype(torch.bfloat16):
            rule = "fp8 computes everything else in bfloat16, which this hardware does not have. Use precision=fp32."
            yield Fault(key="precision", message=rule)

    @property
    def dtypes(self) -> Dtypes:
        """As precision=bf16: only layers that are converted compute in float8."""
        return Dtypes(param=torch.bfloat16, weight=torch.float32, reduce=torch.float32)

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """torch.autocast to bfloat16 around the float8 layers."""
        return torch.autocast(device_type, torch.bfloat16, enabled=self.enabled, cache_enabled=self.cache)

    def scaler(self) -> Scaler:
        """None: each matrix is scaled by itself."""
        return UNIT

    def model_checks(self, spec: "RunSpec") -> Iterable[Callable[[Module], Iterable[Fault]]]:
        """Some layer must be converted."""
        yield self._layer_faults

    def _layer_faults(self, model: Module) -> Iterator[Fault]:
        judged = self._filter.judge(model)
        if all(layer.kept for layer in judged):
            plan = "\n".join(lines(judged))
            rule = f"precision=fp8 would convert no layer of this model. Use precision=bf16, or widen:\n{plan}"
            yield Fault(key="precision", message=rule)

    def plan(self, build_model: Callable[[], Module]) -> Iterable[str]:
        """Which layers are converted, and why the others are not."""
        return lines(self._filter.judge(build_model()))

    def convert(self, model: Module, hardware: Hardware) -> None:
        """Put a float8 layer, with the same parameters, in the place of each chosen one.

        Raises:
            HookError: no layer is chosen.
        """
        judged = self._filter.judge(model)
        chosen = {layer.name for layer in judged if not layer.kept}
        if faults := list(self._layer_faults(model)):
            raise HookError(faults[0].message)
        emulate = not hardware.has_dtype(torch.float8_e4m3fn) if self.emulate is None else self.emulate
        if emulate:
            logger.info("float8 is emulated, to try it out: slower than bfloat16, with the numbers of the hardware")
        _swap(model, chosen, self, emulate=emulate)
        for line in lines(judged):
            logger.info("%s", line)
        if self.float32_outputs:
            return_float32(model)

    @property
    def _filter(self) -> Filter:
        return Filter(
            include=self.include,
            exclude=self.exclude,
            min_features=self.min_features,
            keep_first=self.keep_first,
            keep_last=self.keep_last,
        )


def _swap(model: Module, chosen: set[str], part: FP8, *, emulate: bool) -> None:
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = replace(
        Float8LinearConfig.from_recipe_name(part.recipe.value),
        emulate=emulate,
        pad_inner_dim=part.pad_inner_dim,
        enable_fsdp_float8_all_gather=part.fsdp_float8_all_gather,
    )
    if part.round_scales_to_power_of_2:
        config = replace(config, round_scales_to_power_of_2=True)

    def is_chosen(module: Module, name: str) -> bool:
        return isinstance(module, Linear) and name in chosen

    convert_to_float8_training(model, module_filter_fn=is_chosen, config=config)
