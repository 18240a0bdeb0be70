"""Ranks started by torch's elastic agent: by torchrun, or by the runner's own launchers.

https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
"""

from collections.abc import Mapping

from runner.world.identity.identity import RankIdentity, whole_numbers

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def identify(environment: Mapping[str, str]) -> RankIdentity | None:
    """The identity of a rank started by torchrun, or None.

    RANK alone is not enough: Kubeflow sets it, with WORLD_SIZE, per machine and not per process.

    Raises:
        RankError: the variables contradict each other, or one of them is missing.
    """
    if not {"RANK", "LOCAL_RANK"} <= environment.keys():
        return None
    rank, local_rank, size, local_size = whole_numbers(environment, VARIABLES, launcher="torchrun")
    return RankIdentity(rank=rank, local_rank=local_rank, world_size=size, local_world_size=local_size)
