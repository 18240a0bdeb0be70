"""8-bit floating point: the section fp8_config, whose library decides which keys have an effect."""

from typing import Any

from runner.migrate.accelerate.situation import fp8_backend, is_fp8
from runner.migrate.outcome import Outcome, Rule, Values, becomes
from runner.migrate.rules import chooses, missing_unless, names, only_if, sets, whole, yes_no

__all__ = ["FP8", "fp8"]

LIBRARIES = {
    "AO": becomes(("precision", "fp8")),
    "TE": becomes(("precision", "fp8_te")),
    "MSAMP": becomes(
        ("precision", "fp8"),
        remark="MS-AMP is no longer maintained: torchao instead; strategy=fsdp shards the optimizer state",
        is_missing=True,
    ),
}


def fp8(values: Values) -> Outcome:
    """The precision of mixed_precision: fp8."""
    return LIBRARIES.get(fp8_backend(values), LIBRARIES["AO"])


def _library(value: object, values: Values) -> Outcome:
    return chooses(LIBRARIES)(fp8_backend(values), values)


def _three(value: Any, values: Values) -> Outcome:
    """Which of output, input gradient and weight gradient are computed in higher precision; also "(true, false)"."""
    words = names(value.strip("()[] ") if isinstance(value, str) else value if isinstance(value, list) else [value])
    flags = [yes_no(word) for word in words]
    if len(flags) == 1:
        flags *= 3
    if len(flags) != 3:
        raise ValueError("must be three truth values: of output, input gradient and weight gradient.")
    return becomes(("precision.override_linear_precision", flags))


TORCHAO: dict[str, Rule] = {
    "fp8_enable_fsdp_float8_all_gather": sets("precision.fsdp_float8_all_gather", yes_no),
    "fp8_pad_inner_dim": sets("precision.pad_inner_dim", yes_no),
}
TRANSFORMER_ENGINE: dict[str, Rule] = {
    "fp8_use_autocast_during_eval": sets("precision.use_autocast_during_eval", yes_no),
    "fp8_margin": sets("precision.margin", whole),
    "fp8_interval": sets("precision.interval", whole),
    "fp8_format": chooses(
        {
            "HYBRID": becomes(("precision.fp8_format", "HYBRID")),
            "E4M3": becomes(("precision.fp8_format", "E4M3")),
            "E5M2": Outcome(remark="not there for a forward: HYBRID uses it in the backward", is_missing=True),
        }
    ),
    "fp8_amax_history_len": sets("precision.amax_history_len", whole),
    "fp8_amax_compute_algo": chooses(
        {
            "MAX": becomes(("precision.amax_compute_algo", "max")),
            "MOST_RECENT": becomes(("precision.amax_compute_algo", "most_recent")),
        }
    ),
    "fp8_override_linear_precision": _three,
    "fp8_use_mxfp8_block_scaling": missing_unless(
        False, "not there: scales are one for each tensor, from its past", convert=yes_no
    ),
}
TRANSFORMER_ENGINE["fp8_amax_history_length"] = TRANSFORMER_ENGINE["fp8_amax_history_len"]
TRANSFORMER_ENGINE["fp8_amax_compute_algorithm"] = TRANSFORMER_ENGINE["fp8_amax_compute_algo"]


def _level(value: object, values: Values) -> Outcome:
    return chooses(dict.fromkeys(("O1", "O2"), LIBRARIES["MSAMP"]))(value, values)


MS_AMP: dict[str, Rule] = {"fp8_opt_level": _level, "fp8_optimization_level": _level}

FP8 = only_if(
    is_fp8,
    "mixed_precision: fp8",
    {
        "fp8_backend": _library,
        **only_if(lambda values: fp8_backend(values) == "AO", "backend: AO", TORCHAO),
        **only_if(lambda values: fp8_backend(values) == "TE", "backend: TE", TRANSFORMER_ENGINE),
        **only_if(lambda values: fp8_backend(values) == "MSAMP", "backend: MSAMP", MS_AMP),
    },
)
"""The section fp8_config."""
