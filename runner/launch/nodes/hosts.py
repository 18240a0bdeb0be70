"""Host names: which of them is this machine, their order in a hostfile, and the interface that leads to one."""

import ipaddress
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import final

PORT = 29400
"""The default port of node 0, as torchrun has it."""
SIOCGIFADDR = 0x8915  # linux/sockios.h: the IPv4 address of an interface


@final
@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """The address at which node 0 listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@final
@dataclass(frozen=True, kw_only=True)
class Host:
    """One line of a hostfile."""

    name: str
    slots: int | None
    """Ranks that it has room for; None = not given."""


def endpoint(text: str) -> Endpoint:
    """Read host, host:port or [IPv6]:port.

    Raises:
        ValueError: it is none of these.
    """
    wrong = ValueError(f"{text!r} must be the host of node 0, or host:port with a port from 1 to 65535.")
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        host, port = text, str(PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or host.split() != [host] or not port.isdecimal() or not 0 < int(port) < 65536:
        raise wrong
    return Endpoint(host=host, port=int(port))


def read_hostfile(path: Path) -> list[Host]:
    """Read lines of `host` or `host slots=n`, with # comments, as DeepSpeed and Open MPI do.

    Raises:
        ValueError: the file cannot be read, a line cannot be parsed, or a host is listed twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}. Give a file with one host per line.") from None
    lines = ((number, line.partition("#")[0].split()) for number, line in enumerate(text.splitlines(), start=1))
    hosts = [_host(words, path=path, number=number) for number, words in lines if words]
    names = [host.name for host in hosts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path} lists {', '.join(twice)} twice. Give each host one line, with all of its slots.")
    if not hosts:
        raise ValueError(f"{path} lists no host. Give one host per line.")
    return hosts


def _host(words: list[str], *, path: Path, number: int) -> Host:
    name, *others = words
    if not others:
        return Host(name=name, slots=None)
    key, _, slots = others[0].partition("=")
    if len(others) > 1 or key != "slots" or not slots.isdecimal() or int(slots) < 1:
        rule = "must be a host, or a host and slots=n."
        raise ValueError(f"{path}, line {number}: {' '.join(words)!r} {rule}")
    return Host(name=name, slots=int(slots))


def is_here(host: str) -> bool:
    """Whether the name resolves to an address of this machine: no other address can be bound.

    Raises:
        OSError: the name cannot be resolved.
    """
    return bool(_addresses_here(host))


def listen(place: Endpoint) -> list[socket.socket]:
    """Listen at the addresses of this machine that the host names; at all of them if the host names none.

    That happens behind a translating router or service, and where a machine's own name is 127.0.1.1 to itself, as
    Debian's installer has it: others know it by an address that is not known here.

    Raises:
        OSError: the port is taken, or the name cannot be resolved.
    """
    addresses = _addresses_here(place.host)
    if not _names_loopback(place.host):
        addresses = [address for address in addresses if not ipaddress.ip_address(address).is_loopback]
    if not addresses:
        return [_listen_everywhere(place.port)]
    return [
        socket.create_server(
            (address, place.port),
            family=socket.AF_INET6 if ":" in address else socket.AF_INET,
            backlog=socket.SOMAXCONN,  # all ranks of all nodes connect at the same moment
        )
        for address in addresses
    ]


def _addresses_here(host: str) -> list[str]:
    """The addresses of a host that this machine has."""
    found = []
    for family, kind, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
        with socket.socket(family, kind) as probe:
            try:
                probe.bind(address)
            except OSError:
                continue
            found.append(str(address[0]))
    return found


def _names_loopback(host: str) -> bool:
    """Whether it is meant to be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen_everywhere(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=socket.SOMAXCONN, dualstack_ipv6=True
        )  # fmt: skip
    return socket.create_server(("", port), backlog=socket.SOMAXCONN)


def interface_to(host: str) -> str | None:
    """The network interface through which a host is reached; None where that is not known. Sends nothing."""
    if sys.platform != "linux":
        return None
    import fcntl  # not on every system

    try:
        *_, address = socket.getaddrinfo(host, PORT, socket.AF_INET)[0]
    except socket.gaierror:
        return None  # it has IPv6 addresses only
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        here = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            try:
                asked = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, name.encode().ljust(40, b"\0"))
            except OSError:
                continue  # it has no IPv4 address
            if asked[20:24] == here:
                return name
    return None
