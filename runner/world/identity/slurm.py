"""Ranks started by srun, one task each.

https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES
"""

import re
from collections.abc import Mapping

from runner.errors import RankError
from runner.world.identity.identity import RankIdentity, whole_numbers

VARIABLES = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS")
TASKS_PER_NODE = "SLURM_STEP_TASKS_PER_NODE"


def identify(environment: Mapping[str, str]) -> RankIdentity | None:
    """The identity of a rank started by srun, or None.

    SLURM_PROCID and SLURM_NTASKS are not enough: a batch script has them too (0, and the number of tasks that it may
    start) but is not a rank. Only srun sets the variables of a step.

    Raises:
        RankError: the variables contradict each other, or one of them is missing.
    """
    if not {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS"} <= environment.keys():
        return None
    numbers = whole_numbers(environment, VARIABLES, launcher="srun")
    rank, local_rank, node_rank, size = numbers
    local_size = _tasks_on(node_rank, environment.get(TASKS_PER_NODE, ""))
    return RankIdentity(rank=rank, local_rank=local_rank, world_size=size, local_world_size=local_size)


def _tasks_on(node_rank: int, text: str) -> int:
    """The number of tasks on a node, from a list such as `4(x2),3`: four on each of two nodes, three on the third."""
    tasks: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            raise RankError(f"{TASKS_PER_NODE}={text!r} must be a list such as 4(x2),3, as srun sets it.")
        tasks += [int(found[1])] * int(found[2] or 1)
    if node_rank >= len(tasks):
        raise RankError(f"{TASKS_PER_NODE}={text!r} lists {len(tasks)} nodes, but SLURM_NODEID={node_rank}.")
    return tasks[node_rank]
