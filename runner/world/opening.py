"""The world that a process belongs to."""

from datetime import timedelta

from runner.protocols import Axes, Hardware, World
from runner.world.activity import UNREAD, Activity
from runner.world.group import join_group
from runner.world.identity import RankIdentity
from runner.world.solo import SoloWorld


def open_world(
    hardware: Hardware, axes: Axes, identity: RankIdentity | None, *, timeout: timedelta, activity: Activity = UNREAD
) -> World:
    """The world of this process: one of several ranks, or a world of one if it has no identity. Collective.

    Args:
        hardware: gives this rank its device.
        axes: the mesh of all ranks.
        identity: which rank this process is. Torch's rendezvous variables say where the ranks meet.
        timeout: of every collective.
        activity: is told when this rank waits for others.
    """
    if identity is None:
        return SoloWorld(hardware.claim(0), axes=axes)
    local_rank = identity.local_rank
    device = hardware.claim(local_rank)
    return join_group(
        device, axes=axes, backend=hardware.backend, local_rank=local_rank, timeout=timeout, activity=activity
    )
