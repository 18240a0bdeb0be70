"""Host names, endpoints and hostfiles."""

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from machines import free_port

from runner.launch.nodes.hosts import Endpoint, Host, endpoint, interface_to, is_here, listen, read_hostfile


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("node-0", "node-0", 29400),
        ("node-0:1234", "node-0", 1234),
        ("10.0.0.1:65535", "10.0.0.1", 65535),
        ("fd00::1", "fd00::1", 29400),
        ("[fd00::1]:1234", "fd00::1", 1234),
    ],
)
def test_an_endpoint_is_a_host_and_perhaps_a_port(text: str, host: str, port: int) -> None:
    found = endpoint(text)
    assert found == Endpoint(host=host, port=port)
    assert endpoint(str(found)) == found


@pytest.mark.parametrize("text", ["", ":1", "a:", "a:0", "a:65536", "a:x", "a b", "a:-1"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be the host of node 0, or host:port with a port from 1 to 65535"):
        endpoint(text)


def test_a_hostfile_gives_hosts_in_order(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# two machines\nworker-1 slots=4  # the large one\n\n  worker-0\n")
    assert read_hostfile(path) == [Host(name="worker-1", slots=4), Host(name="worker-0", slots=None)]


@pytest.mark.parametrize("line", ["a slots=0", "a slots=x", "a slots=", "a 4", "a slots=1 max_slots=2"])
def test_a_line_that_says_something_else_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(f"first\n{line}\n")
    with pytest.raises(ValueError, match=f"hosts, line 2: '{line}' must be a host, or a host and slots=n"):
        read_hostfile(path)


def test_this_machine_knows_its_own_addresses() -> None:
    assert is_here("127.0.0.1")
    assert not is_here("192.0.2.1")  # reserved for documentation: nobody has it (RFC 5737)
    with pytest.raises(OSError, match=r"(?i)name"):
        is_here("nobody.invalid")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_node_0_listens_at_the_addresses_that_the_rendezvous_names(host: str) -> None:
    named = {address[0] for *_, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)}
    assert addresses_of(host) == {address for address in named if is_here(str(address))}


def test_node_0_listens_everywhere_where_the_rendezvous_names_no_address_of_its_own() -> None:
    assert addresses_of("192.0.2.1") <= {"::", "0.0.0.0"}


def addresses_of(host: str) -> set[str]:
    """Where node 0 listens for this rendezvous; each of the sockets is closed again."""
    with ExitStack() as stack:
        return {stack.enter_context(one).getsockname()[0] for one in listen(Endpoint(host=host, port=free_port()))}


def test_the_interface_to_oneself_is_loopback() -> None:
    assert interface_to("127.0.0.1") == dict(socket.if_nameindex())[1]
    assert interface_to("nobody.invalid") is None
