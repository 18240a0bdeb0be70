"""Which rank a process is, by the variables of what started it. The environments are as these programs set them."""

import re

import pytest

from runner.errors import RankError
from runner.world.identity import VARIABLES, RankIdentity, find_identity

TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a"}
BATCH_SCRIPT = {
    "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "7",
}
SRUN = {
    **BATCH_SCRIPT,
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}


def identity(rank: int, local_rank: int, world_size: int, local_world_size: int) -> RankIdentity:
    return RankIdentity(rank=rank, local_rank=local_rank, world_size=world_size, local_world_size=local_world_size)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN, identity(5, 1, 8, 4)),
        (SRUN, identity(6, 2, 7, 3)),
        (OPEN_MPI, identity(3, 1, 4, 2)),
        (MPICH, identity(1, 0, 2, 1)),
    ],
    ids=["torchrun", "srun", "Open MPI", "MPICH"],
)
def test_each_environment_numbers_its_ranks(environment: dict[str, str], expected: RankIdentity) -> None:
    assert find_identity({"PATH": "/bin", **environment}) == expected
    assert find_identity({name: value for name, value in environment.items() if name not in VARIABLES}) is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({**SRUN, **OPEN_MPI, **TORCHRUN}, identity(5, 1, 8, 4)),
        ({**BATCH_SCRIPT, **TORCHRUN}, identity(5, 1, 8, 4)),
        ({**SRUN, **OPEN_MPI}, identity(3, 1, 4, 2)),  # mpirun starts its daemons by srun
        ({**SRUN, **MPICH}, identity(1, 0, 2, 1)),
        ({**SRUN, "PMI_RANK": "6", "PMI_SIZE": "7"}, identity(6, 2, 7, 3)),  # srun --mpi=pmi2
    ],
    ids=["agent in mpirun in srun", "agent in a batch script", "Open MPI in srun", "MPICH in srun", "srun with PMI"],
)
def test_the_innermost_environment_decides(environment: dict[str, str], expected: RankIdentity) -> None:
    assert find_identity(environment) == expected


@pytest.mark.parametrize(
    "environment",
    [{}, BATCH_SCRIPT, {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, {"PMI_RANK": "0", "PMI_SIZE": "1"}],
    ids=["nothing", "batch script", "Kubeflow's machine", "PMI without a process manager"],
)
def test_a_process_that_is_no_rank_has_no_identity(environment: dict[str, str]) -> None:
    assert find_identity(environment) is None


@pytest.mark.parametrize(
    ("tasks", "node_rank", "expected"),
    [("2", 0, 2), ("2(x3)", 2, 2), ("2(x2),1", 1, 2), ("2(x2),1", 2, 1), ("1,2(x2)", 0, 1)],
)
def test_slurms_list_of_tasks_is_read(tasks: str, node_rank: int, expected: int) -> None:
    here = {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": str(node_rank), "SLURM_LOCALID": "0"}
    found = find_identity({**SRUN, **here})
    assert found is not None
    assert found.local_world_size == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
            "torchrun sets RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE, but LOCAL_WORLD_SIZE is missing. Set it"
            " as torchrun does, or unset the others.",
        ),
        (TORCHRUN | {"RANK": "one"}, "RANK='one' must be a whole number, as torchrun sets it."),
        (TORCHRUN | {"RANK": "8"}, "rank does not fit world_size."),
        (TORCHRUN | {"LOCAL_RANK": "4"}, "local_rank does not fit local_world_size."),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "9"}, "local_world_size does not fit world_size."),
        (
            SRUN | {"SLURM_STEP_TASKS_PER_NODE": "4;3"},
            "SLURM_STEP_TASKS_PER_NODE='4;3' must be a list such as 4(x2),3, as srun sets it.",
        ),
        (
            SRUN | {"SLURM_STEP_TASKS_PER_NODE": "7"},
            "SLURM_STEP_TASKS_PER_NODE='7' lists 1 nodes, but SLURM_NODEID=1.",
        ),
    ],
)
def test_contradictions_are_reported(environment: dict[str, str], message: str) -> None:
    with pytest.raises(RankError, match=re.escape(message)):
        find_identity(environment)
