"""Linear layers and layer norms from NVIDIA's TransformerEngine, with delayed scaling: scales come from past amaxes."""

import importlib.util
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, final

from runner.errors import Fault
from runner.precision.fp8_layers import Filter, describe
from runner.protocols import Dtypes, Hardware, Scaler

if TYPE_CHECKING:
    from torch.nn import Module

    from runner.config.run_spec import RunSpec

logger = logging.getLogger(__name__)


class Format(Enum):
    """The float8 formats of the forward and the backward."""

    HYBRID = "HYBRID"
    """E4M3 in the forward, E5M2 in the backward: for training."""
    E4M3 = "E4M3"
    """E4M3 in both."""


class Amax(Enum):
    """How the next scale is computed from the amax history."""

    MAX = "max"
    """From the largest amax of the history."""
    MOST_RECENT = "most_recent"
    """From the most recent amax."""


@final
@dataclass(frozen=True, kw_only=True)
class FP8TransformerEngine:
    """Weights in float32; TransformerEngine's layers multiply in float8, everything else as with precision=bf16."""

    margin: int = 0
    """Headroom between the largest value and float8's maximum, in powers of two."""
    interval: int = 1
    """Steps between updates of the scale."""
    fp8_format: Format = Format.HYBRID
    """The float8 formats of the forward and the backward."""
    amax_history_len: int = 1024
    """Length of the amax history, in steps."""
    amax_compute_algo: Amax = Amax.MAX
    """How the scale is computed from the history."""
    override_linear_precision: list[bool] = field(default_factory=lambda: [False, False, False])
    """Whether to compute the output, the input gradient and the weight gradient in higher precision than float8."""
    use_autocast_during_eval: bool = False
    """Use float8 in evaluations too."""
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
    convert_layer_norms: bool = True
    """Convert layer norms too, for TransformerEngine's faster kernels; they do not compute in float8."""
    float32_outputs: bool = True
    """Cast the model's outputs to float32 before the loss hook receives them."""

    def __post_init__(self) -> None:
        if len(self.override_linear_precision) != 3:
            rule = "must be 3 booleans: for output, input gradient and weight gradient. Use [false, false, false]."
            raise ValueError(f"override_linear_precision={self.override_linear_precision} {rule}")
        for name in ("interval", "amax_history_len", "min_features"):
            if vars(self)[name] < 1:
                raise ValueError(f"{name}={vars(self)[name]} must be at least 1.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Requires TransformerEngine and hardware with float8."""
        import torch

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
        import torch

        return Dtypes(param=torch.bfloat16, weight=torch.float32, reduce=torch.float32)

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """Returns a context that autocasts to bfloat16 and, inside TransformerEngine's layers, to float8."""
        return _Float8(self, device_type)

    def scaler(self) -> Scaler:
        """Returns the unit scaler: each float8 matrix has a scale of its own."""
        from runner.precision.scaling import UNIT

        return UNIT

    def plan(self, build_model: "Callable[[], Module]") -> Iterable[str]:
        """Lists which layers are converted and why the others are not."""
        return describe(self._filter.choose(build_model()))

    def convert(self, model: "Module", hardware: Hardware) -> None:
        """Replaces each chosen layer by TransformerEngine's, with the same parameters."""
        from runner.precision.casting import cast_outputs_to_float32

        choices = self._filter.choose(model)
        for line in describe(choices):
            logger.info("%s", line)
        chosen = {layer.name for layer in choices if not layer.skip_reason}
        _swap(model, chosen, layer_norms=self.convert_layer_norms)
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


@final
class _Float8:
    """torch.autocast and fp8_autocast as one context that is re-entered for each forward."""

    def __init__(self, part: FP8TransformerEngine, device_type: str) -> None:
        import torch
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
        import torch

        self._outer.__enter__()  # type: ignore[no-untyped-call]
        # Evaluation is recognized by disabled gradients.
        enabled = self._in_eval or torch.is_grad_enabled()
        self._inner = self._fp8_autocast(enabled=enabled, fp8_recipe=self._recipe)
        self._inner.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._inner.__exit__(*exception)
        self._outer.__exit__(*exception)


def _swap(model: "Module", chosen: set[str], *, layer_norms: bool) -> None:
    from torch.nn import LayerNorm, Linear
    from transformer_engine import pytorch as te

    for name, module in list(model.named_modules()):
        if name in chosen and isinstance(module, Linear):
            has_bias = module.bias is not None
            layer = te.Linear(module.in_features, module.out_features, bias=has_bias, params_dtype=module.weight.dtype)
        elif layer_norms and name and isinstance(module, LayerNorm) and module.elementwise_affine:
            layer = te.LayerNorm(module.normalized_shape[0], eps=module.eps, params_dtype=module.weight.dtype)
        else:
            continue
        layer.weight, layer.bias = module.weight, module.bias  # the same objects, so that tied weights stay tied
        model.set_submodule(name, layer)
    # TransformerEngine saves its amax history as pickled extra state. Leave it out of checkpoints: a resumed run
    # collects a new one.
    model.register_state_dict_post_hook(_drop_extra_state)  # type: ignore[no-untyped-call]


def _drop_extra_state(_model: "Module", state: dict[str, Any], _prefix: str, _metadata: Any) -> None:
    for name in [name for name in state if name.endswith("_extra_state")]:
        del state[name]
