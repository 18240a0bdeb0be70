"""Linear layers and layer norms by NVIDIA's TransformerEngine, with delayed scaling: scales from amaxes of the past."""

import importlib.util
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, final

import torch
from torch.nn import LayerNorm, Linear, Module

from runner.errors import Fault
from runner.precision.fp8_layers import Filter, lines
from runner.precision.outputs import return_float32
from runner.precision.scaling import UNIT
from runner.protocols import Dtypes, Hardware, Scaler

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec

logger = logging.getLogger(__name__)


class Format(Enum):
    """Which float8."""

    HYBRID = "HYBRID"
    """E4M3 forward, E5M2 backward: for training."""
    E4M3 = "E4M3"
    """E4M3 both ways."""


class Amax(Enum):
    """Which of the largest values of the past makes the next scale."""

    MAX = "max"
    """The largest of the history."""
    MOST_RECENT = "most_recent"
    """The last one."""


@final
@dataclass(frozen=True, kw_only=True)
class FP8TransformerEngine:
    """Weights in float32; TransformerEngine's layers multiply in float8, all else as in precision=bf16."""

    margin: int = 0
    """Powers of two between the largest value and the end of float8's range."""
    interval: int = 1
    """Steps between two computations of the scale."""
    fp8_format: Format = Format.HYBRID
    """Which float8."""
    amax_history_len: int = 1024
    """Past largest values that are kept."""
    amax_compute_algo: Amax = Amax.MAX
    """Which of them makes the scale."""
    override_linear_precision: list[bool] = field(default_factory=lambda: [False, False, False])
    """Of the products for output, input gradient and weight gradient: true = not in float8."""
    use_autocast_during_eval: bool = False
    """Evaluate in float8, too."""
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
    convert_layer_norms: bool = True
    """Convert layer norms, too; without float8, for their kernels."""
    float32_outputs: bool = True
    """What the model returns reaches the loss hook as float32."""

    def __post_init__(self) -> None:
        if len(self.override_linear_precision) != 3:
            rule = "must be three truths: for output, input gradient and weight gradient. Use [false, false, false]."
            raise ValueError(f"override_linear_precision={self.override_linear_precision} {rule}")
        for name in ("interval", "amax_history_len", "min_features"):
            if vars(self)[name] < 1:
                raise ValueError(f"{name}={vars(self)[name]} must be at least 1.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """The library must be there, and float8."""
        if importlib.util.find_spec("transformer_engine") is None:
            rule = (
                "fp8_te needs NVIDIA's TransformerEngine, which is not installed: pip install "
                "'transformer_engine[pytorch]' on a machine with CUDA. Or use precision=fp8, which needs torchao only."
            )
            yield Fault(key="precision", message=rule)
        if not spec.hardware.has_dtype(torch.float8_e4m3fn):
            rule = "this hardware has no float8, and TransformerEngine does not emulate it. Use precision=fp8 or bf16."
            yield Fault(key="precision", message=rule)

    @property
    def dtypes(self) -> Dtypes:
        """As precision=bf16: only layers that are converted compute in float8."""
        return Dtypes(param=torch.bfloat16, weight=torch.float32, reduce=torch.float32)

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """Autocast to bfloat16, and inside it to float8."""
        return _Float8(self, device_type)

    def scaler(self) -> Scaler:
        """None: each matrix is scaled by itself."""
        return UNIT

    def plan(self, build_model: Callable[[], Module]) -> Iterable[str]:
        """Which layers are converted, and why the others are not."""
        return lines(self._filter.judge(build_model()))

    def convert(self, model: Module, hardware: Hardware) -> None:
        """Put TransformerEngine's layer, with the same parameters, in the place of each chosen one."""
        judged = self._filter.judge(model)
        for line in lines(judged):
            logger.info("%s", line)
        _swap(model, {layer.name for layer in judged if not layer.kept}, layer_norms=self.convert_layer_norms)
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


@final
class _Float8:
    """torch.autocast and fp8_autocast as one context, entered for each forward in turn."""

    def __init__(self, part: FP8TransformerEngine, device_type: str) -> None:
        from transformer_engine.common import recipe
        from transformer_engine.pytorch import fp8_autocast

        self._outer = torch.autocast(device_type, torch.bfloat16)
        self._fp8_autocast = fp8_autocast
        self._in_eval = part.use_autocast_during_eval
        self._recipe = recipe.DelayedScaling(
            margin=part.margin,
            interval=part.interval,
            fp8_format=recipe.Format[part.fp8_format.value],
            amax_history_len=part.amax_history_len,
            amax_compute_algo=part.amax_compute_algo.value,
            override_linear_precision=tuple(part.override_linear_precision),
        )

    def __enter__(self) -> None:
        self._outer.__enter__()  # type: ignore[no-untyped-call]
        # Evaluation is what runs without gradients.
        enabled = self._in_eval or torch.is_grad_enabled()
        self._inner = self._fp8_autocast(enabled=enabled, fp8_recipe=self._recipe)
        self._inner.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._inner.__exit__(*exception)
        self._outer.__exit__(*exception)


def _swap(model: Module, chosen: set[str], *, layer_norms: bool) -> None:
    from transformer_engine import pytorch as te

    for name, module in list(model.named_modules()):
        if name in chosen and isinstance(module, Linear):
            has_bias = module.bias is not None
            made = te.Linear(module.in_features, module.out_features, bias=has_bias, params_dtype=module.weight.dtype)
        elif layer_norms and name and isinstance(module, LayerNorm) and module.elementwise_affine:
            made = te.LayerNorm(module.normalized_shape[0], eps=module.eps, params_dtype=module.weight.dtype)
        else:
            continue
        made.weight, made.bias = module.weight, module.bias  # the parameters themselves: ties and names stay
        model.set_submodule(name, made)
    # Past amaxes would be in checkpoints as pickles that only this library reads; a resumed run collects them anew.
    model.register_state_dict_post_hook(_without_histories)  # type: ignore[no-untyped-call]


def _without_histories(_model: Module, state: dict[str, Any], _prefix: str, _metadata: Any) -> None:
    for name in [name for name in state if name.endswith("_extra_state")]:
        del state[name]
