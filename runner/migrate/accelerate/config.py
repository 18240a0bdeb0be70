"""Accelerate's configuration as arguments of `accelerate launch`, as Accelerate itself reads it, and their lines."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.config.files import JsonFile
from runner.errors import Fault, SpecError
from runner.migrate.accelerate.dynamo import DYNAMO
from runner.migrate.accelerate.elsewhere import ELSEWHERE
from runner.migrate.accelerate.fp8 import FP8
from runner.migrate.accelerate.general import GENERAL
from runner.migrate.accelerate.megatron import MEGATRON
from runner.migrate.accelerate.situation import is_deepspeed
from runner.migrate.accelerate.strategy import FSDP, PARALLELISM
from runner.migrate.accelerate.zero import DEEPSPEED
from runner.migrate.deepspeed.read import deepspeed_lines, leaves
from runner.migrate.outcome import Argument, Line, Rule
from runner.migrate.translate import Translated, is_given, translate

__all__ = ["TABLE", "TOP_LEVEL", "accelerate_lines", "arguments_in"]

PREFIXES = {
    "fsdp_config": "fsdp_",
    "fp8_config": "fp8_",
    "dynamo_config": "dynamo_",
    "megatron_lm_config": "megatron_lm_",
    "parallelism_config": "parallelism_config_",
    "mpirun_config": "mpirun_",
    "deepspeed_config": "",
}
"""The sections of a file, and how their keys begin where they are arguments; old files leave the beginning out."""
TABLE: Mapping[str, Rule] = {
    **GENERAL,
    **FSDP,
    **PARALLELISM,
    **DEEPSPEED,
    **MEGATRON,
    **FP8,
    **DYNAMO,
    **ELSEWHERE,
}
TOP_LEVEL = (*GENERAL, *ELSEWHERE, *PREFIXES)
"""The names at the top of a file."""
WORDS = ("distributed_type", "mixed_precision", "dynamo_backend")
"""Arguments of which one value is NO."""
JSON_FILE = "deepspeed_config_file"


def arguments_in(content: Mapping[str, Any]) -> dict[str, Argument]:
    """The arguments of a file, by name."""
    return dict(_arguments(content))


def _arguments(content: Mapping[str, Any]) -> Iterator[tuple[str, Argument]]:
    for key, value in content.items():
        prefix = PREFIXES.get(key)
        if prefix is None or not isinstance(value, Mapping):
            yield key, Argument(str(key), value)
            continue
        for name, one in value.items():
            full = name if str(name).startswith(prefix) else f"{prefix}{name}"
            yield full, Argument(f"{key}.{name}", one)


def accelerate_lines(arguments: Mapping[str, Argument], *, origin: str, directory: Path | None = None) -> list[Line]:
    """A line for each argument, and for each key of a DeepSpeed file that they name.

    Args:
        origin: where the arguments stand, for faults.
        directory: of the configuration, beside which a DeepSpeed file may lie; None = only the working directory.

    Raises:
        SpecError: arguments are unknown, or their values wrong; or the DeepSpeed file cannot be read.
    """
    arguments = {name: _with_words(name, one) for name, one in arguments.items()}
    values = {name: one.value for name, one in arguments.items() if is_given(one.value)}
    inner = Translated([], [])
    if JSON_FILE in values and is_deepspeed(values) and values[JSON_FILE] != "none":
        path, content = _json_file(arguments[JSON_FILE], directory, origin)
        found = dict(leaves(content))
        values["zero_stage"] = found.get("zero_optimization.stage", 0)
        inner = deepspeed_lines(content, values, origin=str(path), prefix=f"{path.name}: ")
    outer = translate(arguments, _rule, values, origin=origin, known=TABLE)
    if faults := [*outer.faults, *inner.faults]:
        raise SpecError(*faults)
    return [*outer.lines, *inner.lines]


def _with_words(name: str, argument: Argument) -> Argument:
    """The argument, with NO where YAML read a bare no as false."""
    return argument._replace(value="NO") if argument.value is False and name in WORDS else argument


def _rule(name: str) -> Rule | None:
    return _not_a_section if name in PREFIXES else TABLE.get(name)


def _not_a_section(value: object, values: object) -> Any:
    raise ValueError("must be a section of keys.")


def _json_file(argument: Argument, directory: Path | None, origin: str) -> tuple[Path, Mapping[str, Any]]:
    """The DeepSpeed file, from the working directory or from beside the configuration."""
    named = Path(str(argument.value))
    beside = named if directory is None else directory / named
    path = named if named.is_file() or not beside.is_file() else beside
    try:
        return path, JsonFile(path=str(path)).read().parsed
    except ValueError as wrong:
        raise SpecError(Fault(key=argument.key, message=str(wrong), origin=origin)) from None
