"""Command lines of launchers: torchrun, accelerate launch, deepspeed. Nothing of them is executed."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from runner.config.nearest import did_you_mean
from runner.errors import Fault, SpecError
from runner.migrate.accelerate.config import TABLE, accelerate_lines, arguments_in
from runner.migrate.launchers import DEEPSPEED, DEEPSPEED_FLAGS, TORCHRUN, TORCHRUN_FLAGS
from runner.migrate.outcome import Argument, Line, Outcome, Rule, becomes
from runner.migrate.rules import whole
from runner.migrate.translate import Migration, translate
from runner.migrate.tree import read_tree

__all__ = ["read_command"]

ORIGIN = "the command line"
CONFIG_FILE = "config_file"
ACCELERATE_FLAGS = frozenset(
    {
        *("quiet", "cpu", "multi_gpu", "tpu", "enable_cpu_affinity", "module", "no_python", "same_network", "debug"),
        *("dynamo_use_fullgraph", "dynamo_use_dynamic", "dynamo_use_regional_compilation"),
        *("use_deepspeed", "use_fsdp", "use_parallelism_config", "use_megatron_lm"),
        *("tpu_cluster", "no_tpu_cluster", "tpu_use_sudo", "downcast_bf16", "fp8_use_autocast_during_eval"),
    }
)
"""Options of `accelerate launch` that take no value."""
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
SCRIPT = Outcome(remark="a recipe names functions, not a script; arguments of the script become keys of the recipe")
NO_SCRIPT = "names no script to start. Give the whole command line."
Arguments = Mapping[str, Argument]


def _torchrun_lines(arguments: Arguments) -> list[Line]:
    return _translated(arguments, TORCHRUN)


def _deepspeed_lines(arguments: Arguments) -> list[Line]:
    return _translated(arguments, DEEPSPEED)


def _translated(arguments: Arguments, table: Mapping[str, Rule]) -> list[Line]:
    values = {name: one.value for name, one in arguments.items()}
    found = translate(arguments, table.get, values, origin=ORIGIN, known=table)
    if found.faults:
        raise SpecError(*found.faults)
    return found.lines


def _accelerate_lines(arguments: Arguments) -> list[Line]:
    """Arguments of the command line replace those of the configuration that it names."""
    named = arguments.get(CONFIG_FILE)
    if named is None:
        return accelerate_lines(arguments, origin=ORIGIN)
    path = Path(str(named.value))
    inside = {
        name: Argument(f"{path.name}: {one.key}", one.value)
        for name, one in arguments_in(read_tree(path).content).items()
    }
    own = {name: one for name, one in arguments.items() if name != CONFIG_FILE}
    lines = accelerate_lines({**inside, **own}, origin=f"{ORIGIN} and {path}", directory=path.parent)
    replaced = Outcome(remark="the command line says otherwise")
    return [*lines, *(Line(inside[name], replaced) for name in inside if name in own)]


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """A program that starts the processes of a script."""

    calls: Sequence[tuple[str, ...]]
    """The words that call it, without a path before the first."""
    known: frozenset[str]
    """Its options, without -- and with underscores."""
    flags: frozenset[str]
    """Those that take no value."""
    short: Mapping[str, str] = field(default_factory=dict)
    lines: Callable[[Arguments], list[Line]]


PYTHON = ("python", "python3")
LAUNCHERS = (
    Launcher(
        calls=(
            ("torchrun",),
            *((python, "-m", f"torch.distributed.{name}") for python in PYTHON for name in ("run", "launch")),
        ),
        known=frozenset(TORCHRUN),
        flags=TORCHRUN_FLAGS,
        short={"m": "module", "r": "redirects", "t": "tee"},
        lines=_torchrun_lines,
    ),
    Launcher(
        calls=(
            ("accelerate", "launch"),
            ("accelerate-launch",),
            *((python, "-m", "accelerate.commands.launch") for python in PYTHON),
        ),
        known=frozenset({*TABLE, CONFIG_FILE}),
        flags=ACCELERATE_FLAGS,
        short={"m": "module", "q": "quiet", "t": "tee"},
        lines=_accelerate_lines,
    ),
    Launcher(
        calls=(("deepspeed",), *((python, "-m", "deepspeed.launcher.runner") for python in PYTHON)),
        known=frozenset(DEEPSPEED),
        flags=DEEPSPEED_FLAGS,
        short={"H": "hostfile", "i": "include", "e": "exclude", "q": "quiet"},
        lines=_deepspeed_lines,
    ),
)


def read_command(words: Sequence[str]) -> Migration:
    """Read the command line of a launcher.

    Args:
        words: as the shell gives them; assignments of environment variables may stand before the launcher.

    Raises:
        SpecError: it is not the command line of a known launcher, or options are unknown or have wrong values.
    """
    start = next((at for at, word in enumerate(words) if word != "env" and not ASSIGNMENT.fullmatch(word)), len(words))
    launcher, rest = _launcher(words[start:])
    arguments, script = _parse(rest, launcher)
    variables = [_variable(word) for word in words[:start] if word != "env"]
    lines = [*variables, *launcher.lines(arguments), Line(Argument(" ".join(script), ""), SCRIPT)]
    return Migration(ORIGIN, lines)


def _launcher(words: Sequence[str]) -> tuple[Launcher, Sequence[str]]:
    """The launcher that is called, and the words after it."""
    if words:
        bare = (PurePath(words[0]).name, *words[1:])
        for launcher in LAUNCHERS:
            for call in launcher.calls:
                if bare[: len(call)] == call:
                    return launcher, bare[len(call) :]
    known = ", ".join(" ".join(launcher.calls[0]) for launcher in LAUNCHERS)
    rule = f"{' '.join(words[:2]) or 'it'} is not a launcher that is known. Known are {known}."
    raise SpecError(Fault(key=ORIGIN, message=rule))


def _parse(words: Sequence[str], launcher: Launcher) -> tuple[dict[str, Argument], list[str]]:
    """Options up to the script, and the script with its arguments.

    Raises:
        SpecError: options are unknown or lack their value, or there is no script.
    """
    found: dict[str, Argument] = {}
    faults: list[Fault] = []
    waiting = list(words)
    while waiting and waiting[0].startswith("-") and waiting[0] != "--":
        option, is_joined, value = waiting.pop(0).partition("=")
        name = option.lstrip("-").replace("-", "_")
        name = name if option.startswith("--") else launcher.short.get(name, name)
        if name not in launcher.known:
            message = f"is not an option of {' '.join(launcher.calls[0])}.{did_you_mean(name, launcher.known)}"
            faults.append(Fault(key=option, message=f"{message} Correct or remove it.", origin=ORIGIN))
            if not is_joined and len(waiting) > 1 and not waiting[0].startswith("-") and not waiting[0].endswith(".py"):
                waiting.pop(0)  # what looks like its value, so that unknown options after it are told as well
        elif name in launcher.flags:
            found[name] = Argument(option, value if is_joined else True)
        elif not is_joined and not waiting:
            faults.append(Fault(key=option, message="needs a value after it.", origin=ORIGIN))
        else:
            found[name] = Argument(option, value if is_joined else waiting.pop(0))
    script = waiting[1:] if waiting[:1] == ["--"] else waiting
    if not script and not faults:
        faults.append(Fault(key=ORIGIN, message=NO_SCRIPT))
    if faults:
        raise SpecError(*faults)
    return found, script


def _variable(word: str) -> Line:
    """An environment variable that is set for the command."""
    name, _, value = word.partition("=")
    if name == "OMP_NUM_THREADS" and value.isdecimal():
        return Line(Argument(name, value), becomes(("hardware.threads", whole(value))))
    if name.startswith(("ACCELERATE_", "FSDP_")):
        rule = "no environment variable is a setting here: the recipe has them all"
        return Line(Argument(name, value), Outcome(remark=rule, is_missing=True))
    return Line(Argument(name, value), Outcome(remark="set it for `runner train` as well"))
