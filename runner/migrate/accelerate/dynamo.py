"""torch.compile: the section dynamo_config."""

from typing import Any

from runner.migrate.accelerate.situation import is_deepspeed, zero_stage
from runner.migrate.outcome import Outcome, Rule, Values, becomes
from runner.migrate.rules import is_on, missing_unless, only_if, text, yes_no

__all__ = ["DYNAMO"]

OFF = "NO"
INDUCTOR = "inductor"
BACKENDS = ("eager", "aot_eager", INDUCTOR, "cudagraphs", "tvm", "aot_ts")
"""Backends that torch lists without another package."""
GONE = ("aot_ts_nvfuser", "nvprims_nvfuser", "ofi", "fx2trt", "aot_torchxla_trace_once", "torchxla_trace_once")
WITH_PACKAGE = ("onnxrt", "tensorrt", "ipex", "hpu_backend", "openxla")
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def _is_compiled(values: Values) -> bool:
    return str(values.get("dynamo_backend", OFF)).upper() != OFF


def _what(values: Values) -> Outcome:
    """The whole model, or its blocks; ZeRO stage 3 gathers weights between graphs, so only blocks."""
    whole_model = not is_on(values, "dynamo_use_regional_compilation")
    if whole_model and is_deepspeed(values) and zero_stage(values) == 3:
        return becomes(("compile.what", "blocks"), remark="ZeRO stage 3 cannot be compiled as one graph")
    return becomes(("compile.what", "model" if whole_model else "blocks"))


def _backend(value: object, values: Values) -> Outcome:
    name = text(value).lower()
    if not _is_compiled(values):
        return becomes(("compile.what", "none"))
    if name not in (*BACKENDS, *GONE, *WITH_PACKAGE):
        raise ValueError(f"is not one of {', '.join(('no', *BACKENDS, *WITH_PACKAGE))}.")
    what = _what(values)
    if name in BACKENDS:
        return Outcome((*what.settings, *becomes(("compile.backend", name)).settings), what.remark)
    rule = "torch no longer has it" if name in GONE else f"needs a package; with it, compile.backend={name}"
    settings = (*what.settings, *becomes(("compile.backend", INDUCTOR)).settings)
    return Outcome(settings, "; ".join(filter(None, (what.remark, rule))), is_missing=True)


def _mode(value: Any, values: Values) -> Outcome:
    mode = text(value)
    if mode not in MODES:
        raise ValueError(f"is not one of {', '.join(MODES)}.")
    if mode == MODES[0]:
        return becomes(("compile.mode", None))
    if str(values.get("dynamo_backend")).lower() in BACKENDS and not _is_inductor(values):
        return Outcome(remark="a mode of inductor, which is not the backend", is_missing=True)
    return becomes(("compile.mode", mode))


def _is_inductor(values: Values) -> bool:
    return str(values.get("dynamo_backend")).lower() == INDUCTOR


def _dynamic(value: object, values: Values) -> Outcome:
    return becomes(("compile.dynamic", yes_no(value)))


def _regional(value: object, values: Values) -> Outcome:
    yes_no(value)
    return _what(values)


DYNAMO: dict[str, Rule] = {
    "dynamo_backend": _backend,
    **only_if(
        _is_compiled,
        "a dynamo_backend",
        {
            "dynamo_mode": _mode,
            "dynamo_use_dynamic": _dynamic,
            "dynamo_use_fullgraph": missing_unless(
                False, "not there: a graph may break where Python must run", convert=yes_no
            ),
            "dynamo_use_regional_compilation": _regional,
        },
    ),
}
"""The section dynamo_config."""
