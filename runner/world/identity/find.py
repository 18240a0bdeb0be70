"""Tries the launchers that can start a rank, the innermost first."""

from collections.abc import Mapping

from runner.world.identity import mpi, slurm, torchrun
from runner.world.identity.identity import RankIdentity

VARIABLES = (*torchrun.VARIABLES, *mpi.VARIABLES, *slurm.VARIABLES)
"""Without them, a process is a world of one."""


def find_identity(environment: Mapping[str, str]) -> RankIdentity | None:
    """The rank of the process with this environment; None if no launcher started it as a rank.

    Processes inherit the variables of outer launchers, so the innermost launcher decides: torch's agent runs
    inside mpirun or srun, and in a Slurm allocation mpirun starts its daemons, whose variables its ranks inherit, by
    srun. The reverse does not happen.

    Raises:
        RankError: the variables of one launcher contradict each other, or one of them is missing.
    """
    for identify in (torchrun.identify, mpi.identify, slurm.identify):
        identity = identify(environment)
        if identity is not None:
            return identity
    return None
