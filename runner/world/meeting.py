"""How ranks meet: the store that torch's rendezvous variables name, and the default process group."""

import os
import socket
from collections.abc import Mapping
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # public, missing in __all__

__all__ = ["meet"]

LOOPBACK = ("127.0.0.1", "localhost")


def meet(backend: str, *, timeout: timedelta) -> None:
    """Make the default process group. Collective.

    Args:
        backend: of its collectives.
        timeout: of every collective.
    """
    if _hosts_store_on_loopback(os.environ):
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = _loopback_store(rank=rank, size=size, timeout=timeout)
        dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=size)
    else:
        dist.init_process_group(backend, timeout=timeout)


def _hosts_store_on_loopback(environment: Mapping[str, str]) -> bool:
    """Whether rank 0 is to host the store, at a loopback address. Under torchrun, the agent hosts it."""
    is_complete = {"RANK", "WORLD_SIZE", "MASTER_PORT"} <= environment.keys()
    is_agents = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return environment.get("MASTER_ADDR") in LOOPBACK and is_complete and not is_agents


def _loopback_store(*, rank: int, size: int, timeout: timedelta) -> Store:
    """The store that torch would open, but listening at the address that MASTER_ADDR gives.

    Torch's TCPStore listens on every interface, whatever its address, and serves whoever connects; only a socket that
    it is given is bound to one address.
    """
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    listener = socket.create_server(address).detach() if rank == 0 else None
    return TCPStore(*address, size, rank == 0, timeout, multi_tenant=True, master_listen_fd=listener)
