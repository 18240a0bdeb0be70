"""How ranks can reach each other from here: network interfaces, links between devices, shared memory, names.

No addresses and no names of hosts: a report is for strangers to read.
"""

import fcntl
import ipaddress
import os
import re
import shutil
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

from runner.machine.devices import GIB, ask_driver

__all__ = ["device_links", "interfaces", "names", "parse_topology", "shared_memory"]

NETWORK, INFINIBAND, INET6, SHM = (
    Path("/sys/class/net"),
    Path("/sys/class/infiniband"),
    Path("/proc/net/if_inet6"),
    Path("/dev/shm"),
)
IFF_UP, IFF_LOOPBACK = 0x1, 0x8  # linux/if.h
SIOCGIFADDR = 0x8915  # linux/sockios.h
RESOLVE_S = 1.0
"""How long a name may take to resolve: the whole report is to be quick."""
GPU_ROW = re.compile(r"^GPU(\d+)\s+(.*)$", re.MULTILINE)


def interfaces() -> list[dict[str, Any]]:
    """The network interfaces; `usable` = up and with an address, as gloo and NCCL need one."""
    return [_interface(name) for _, name in socket.if_nameindex()]


def device_links() -> dict[str, Any]:
    """How many pairs of CUDA devices reach each other's memory, and by what; the InfiniBand adapters."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    pairs = [(one, other) for one in range(count) for other in range(one + 1, count)]
    peers = [pair for pair in pairs if torch.cuda.can_device_access_peer(*pair)]
    topology = parse_topology(ask_driver("topo", "-m")) if pairs else {}
    return {
        "gpu_pairs": len(pairs),
        "gpu_pairs_with_peer_access": len(peers),
        "gpu_pairs_by_link": topology,
        "infiniband": sorted(path.name for path in INFINIBAND.iterdir()) if INFINIBAND.is_dir() else [],
    }


def parse_topology(matrix: str) -> dict[str, int]:
    """How many pairs of GPUs each kind of link connects, of what `nvidia-smi topo -m` prints: {"NV18": 28}."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", matrix)
    rows = [(int(number), cells.split()) for number, cells in GPU_ROW.findall(plain)]
    counts: dict[str, int] = {}
    for number, cells in rows:
        for kind in cells[number + 1 : len(rows)]:
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def shared_memory() -> dict[str, float] | None:
    """The size of /dev/shm, through which data workers and NCCL pass tensors; None where there is none."""
    if not SHM.is_dir():
        return None
    usage = shutil.disk_usage(SHM)
    return {"size_gib": round(usage.total / GIB, 2), "free_gib": round(usage.free / GIB, 2)}


def names() -> dict[str, str]:
    """What the names by which ranks may meet stand for: this machine's own, and MASTER_ADDR if it is set."""
    found = {"own_name": _where(socket.gethostname())}
    address = os.environ.get("MASTER_ADDR")
    return {**found, "MASTER_ADDR": "not set" if address is None else _where(address)}


def _interface(name: str) -> dict[str, Any]:
    flags = _number(NETWORK / name / "flags", base=16)
    has_address = _has_ipv4(name) or _has_ipv6(name)
    is_up = flags is None or bool(flags & IFF_UP)
    return {
        "name": name,
        "loopback": name.startswith("lo") if flags is None else bool(flags & IFF_LOOPBACK),
        "usable": is_up and has_address,
        "mtu": _number(NETWORK / name / "mtu"),
        "mbit_s": _number(NETWORK / name / "speed"),
    }


def _number(file: Path, *, base: int = 10) -> int | None:
    """The number in a file of the kernel's; None where there is none, as of a virtual interface's speed."""
    try:
        value = int(file.read_text(), base)
    except (OSError, ValueError):
        return None
    return value if value >= 0 else None


def _has_ipv4(name: str) -> bool:
    if sys.platform != "linux":
        return True  # not known without further calls
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError:
            return False
    return True


def _has_ipv6(name: str) -> bool:
    lines = INET6.read_text().splitlines() if INET6.exists() else []
    return any(line.split()[-1] == name for line in lines)


def _where(name: str) -> str:
    """Where a name leads: loopback, this machine, another machine, or nowhere."""
    found: list[str] = []
    asking = Thread(target=lambda: found.extend(_addresses(name)), daemon=True)
    asking.start()
    asking.join(RESOLVE_S)
    if asking.is_alive():
        return f"no answer within {RESOLVE_S:g} s"
    kinds = dict.fromkeys(map(_kind, found))
    return " and ".join(kinds) or "does not resolve"


def _addresses(name: str) -> Iterator[str]:
    try:
        yield from (str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(name, None))
    except (OSError, UnicodeError):
        return


def _kind(address: str) -> str:
    ip = ipaddress.ip_address(address)
    if ip.is_loopback:
        return "loopback"
    with socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as trying:
        try:
            trying.bind((address, 0))  # only an address of this machine can be bound to
        except OSError:
            return "another machine"
    return "this machine"
