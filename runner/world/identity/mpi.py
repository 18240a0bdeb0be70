"""Ranks started by mpirun: of Open MPI, or of the Hydra process manager of MPICH and Intel MPI.

Open MPI: https://docs.open-mpi.org/en/v5.0.x/tuning-apps/environment-var.html
MPICH: src/pm/hydra/proxy/pmip_cb.c sets MPI_LOCALRANKID and MPI_LOCALNRANKS in addition to PMI_RANK and PMI_SIZE.
"""

from collections.abc import Mapping

from runner.world.identity.identity import RankIdentity, whole_numbers

OPEN_MPI = (
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
)
HYDRA = ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS")
VARIABLES = (*OPEN_MPI, *HYDRA)


def identify(environment: Mapping[str, str]) -> RankIdentity | None:
    """The identity of a rank started by mpirun, or None.

    PMI_RANK alone is not enough: srun sets it as well (--mpi=pmi2), but not MPI_LOCALRANKID.

    Raises:
        RankError: the variables contradict each other, or one of them is missing.
    """
    for names, launcher in ((OPEN_MPI, "Open MPI"), (HYDRA, "MPICH")):
        if {names[0], names[1]} <= environment.keys():
            rank, local_rank, size, local_size = whole_numbers(environment, names, launcher=launcher)
            return RankIdentity(rank=rank, local_rank=local_rank, world_size=size, local_world_size=local_size)
    return None
