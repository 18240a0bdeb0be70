"""All ranks of a run on this machine: in this process if there is one, under torch's elastic agent otherwise."""

from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.of_blocks import Compiled, Recompute
from runner.launch.supervision import Supervision
from runner.protocols import SparesCompiler
from runner.world.environment import environment, for_determinism, for_one_machine
from runner.world.fork import can_fork_ranks
from runner.world.handover import hand_over

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec

COMPILER = "torch._dynamo"


def run(spec_path: Path, spec: "RunSpec", supervision: Supervision, *, fork: bool = True) -> None:
    """Start every rank, wait, and return when all are done. Main thread only, since signals are handled meanwhile.

    Args:
        spec_path: the frozen declaration, in its run's directory.
        spec: what is in that file.
        supervision: restarts and timeouts.
        fork: fork the ranks where that is safe; false = always start new interpreters.

    Raises:
        RunFailed: a rank failed and no restart is left.
        Interrupted: a signal ended the run.
    """
    # Imported here: both import torch (0.8 s), which `runner check` does not need.
    hardware = spec.hardware
    variables = for_determinism(deterministic=spec.run.deterministic) | for_one_machine()
    with hand_over(spec.secrets) as place, environment(variables | place):
        if hardware.processes == 1 and supervision.max_restarts == 0:
            from runner.launch import in_process

            in_process.run(spec_path, interrupt_s=supervision.interrupt_s, grace_s=supervision.grace_s)
        else:
            from runner.launch import multi_process

            multi_process.run(
                spec_path,
                supervision,
                processes=hardware.processes,
                timeout_s=hardware.timeout_s,
                fork=fork and can_fork_ranks(hardware),
                preload=[COMPILER] if _needs_compiler(spec) else [],
            )


def _needs_compiler(spec: "RunSpec") -> bool:
    """Whether ranks import torch's compiler, as far as the spec tells: a hook may import it, too."""
    compiles = spec.compile.what is not Compiled.NONE
    recomputes = spec.activation_checkpointing.what is not Recompute.NONE
    return compiles or recomputes or bool(spec.models) or not isinstance(spec.strategy, SparesCompiler)
