"""Strangers on the network: what listens while a run takes place, and what it tells them."""

import asyncio
import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from machines import ADDRESSES, can_make_hosts, free_port, two_hosts
from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # all are public

from runner.errors import LaunchError
from runner.launch.nodes import handshake
from runner.launch.nodes.connect import connect
from runner.launch.nodes.coordinator import Coordinator
from runner.launch.nodes.hosts import Endpoint
from runner.launch.nodes.secret import SharedSecret
from tests.conftest import Started, Zygote

WATCH = Path(__file__).with_name("ports_watch.py")
SECRET = SharedSecret(path=Path("shared/secret"), value=b"what the launchers of one run know")
OTHER = SharedSecret(path=Path("other/secret"), value=b"what the launchers of another run know")
TIMES = {"join_s": 10.0, "lost_s": 30.0}
GREETING = len(handshake.GREETING) + handshake.SIZE
ANSWER = 1 + handshake.SIZE
MIB = 1 << 20

needs_root = pytest.mark.skipif(not can_make_hosts(), reason="needs root and iproute2 to make network hosts")


@pytest.fixture
def node(project: Path, zygote: Zygote, tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Start the command on a network host: node("train", "points", host="a"). Killed at the end."""
    nodes: list[Started] = []

    def start(*argv: str, host: str) -> Started:
        within = {"host": host}
        nodes.append(zygote.start(list(argv), cwd=project, scratch=tmp_path, env={}, within=within, forks=True))
        return nodes[-1]

    yield start
    for one in nodes:
        one.kill()


@dataclass
class Watched:
    """What listened in a network namespace, and which of it answered at the address of its second interface."""

    listening: set[tuple[str, int]]
    answered: set[int]


def on(host: str) -> tuple[str, ...]:
    """What enters a network namespace, before a command."""
    return "ip", "netns", "exec", host


@contextmanager
def watching(host: str, address: str) -> Iterator[Watched]:
    """Filled in when the block ends."""
    watched = Watched(listening=set(), answered=set())
    command = [*on(host), sys.executable, str(WATCH), address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "watching\n"
        yield watched
        seen = json.loads(process.communicate(input="")[0])
    watched.listening = {(place, port) for place, port in seen["listening"]}
    watched.answered = set(seen["answered"])


@pytest.mark.fault("a stranger on the network of one machine", "it listens on loopback only")
@needs_root
@pytest.mark.parametrize(
    "strategy", ["ddp", *(pytest.param(one, marks=pytest.mark.exhaustive) for one in ("fsdp", "deepspeed_zero2"))]
)  # fmt: skip
def test_a_run_on_one_machine_listens_on_loopback_only(node: Callable[..., Started], strategy: str) -> None:
    """The machine's name is an address of its network, where gloo would listen by itself."""
    with two_hosts(f"o{os.getpid()}") as (host, _):
        name = socket.gethostname()
        hosts = Path("/etc/netns") / host / "hosts"
        hosts.write_text(f"127.0.0.1 localhost\n{ADDRESSES[0]} {name}\n")
        with watching(host, ADDRESSES[0]) as watched:
            words = ("train", "points", f"strategy={strategy}", "hardware.processes=2", "batch.micro_items=3")
            ended = node(*words, host=host).wait(timeout_s=120)
    assert ended.code == 0, ended.stderr
    assert {address for address, _ in watched.listening} == {"127.0.0.1"}
    assert len(watched.listening) >= 3, "at least a store and a socket of gloo for each of two ranks"
    assert not watched.answered


@pytest.mark.fault(
    "a stranger on the network of several machines", "it reaches the rendezvous and gloo only, and stops nothing"
)
@needs_root
def test_nodes_listen_at_the_rendezvous_and_for_gloo_only_and_a_stranger_does_not_stop_them(
    node: Callable[..., Started],
) -> None:
    port = free_port()
    with two_hosts(f"n{os.getpid()}") as hosts, ExitStack() as stack:
        watched = [stack.enter_context(watching(host, address)) for host, address in zip(hosts, ADDRESSES, strict=True)]
        words = ("train", "points", "strategy=ddp", "launch=nodes", f"launch.rendezvous={ADDRESSES[0]}:{port}")
        nodes = [node(*words, host=host) for host in hosts]
        stranger = [*on(hosts[1]), sys.executable, "-c", FLOOD, ADDRESSES[0], str(port)]
        flood = stack.enter_context(subprocess.Popen(stranger))
        ends = [each.wait(timeout_s=120) for each in nodes]
        flood.kill()
    assert [ended.code for ended in ends] == [0, 0], ends
    assert ends[0].run_dir.read_status()["state"] == "done"
    for mine, address in zip(watched, ADDRESSES, strict=True):
        assert {place for place, _ in mine.listening} == {"127.0.0.1", address}
    assert (ADDRESSES[0], port) in watched[0].listening
    gloo = 1  # a rank
    assert [len({port for place, port in mine.listening if place != "127.0.0.1"}) for mine in watched] == [
        1 + gloo,
        gloo,
    ]


# Bytes at random, over a hundred connections a second, until killed.
FLOOD = """
import os, socket, sys, time
while True:
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1) as connection:
            connection.sendall(os.urandom(1 << 16))
    except OSError:
        pass
    time.sleep(0.01)
"""


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint(host="127.0.0.1", port=free_port())


@pytest.fixture
def node_0(endpoint: Endpoint) -> Iterator[Coordinator]:
    """Waiting for a node; it knows the declaration of its run."""
    with connect(endpoint, secret=SECRET, node_rank=0, num_nodes=2, **TIMES) as coordinator:
        coordinator._store.set("declaration/0", {"optimizer": {"lr": 0.125}})
        yield coordinator


def stranger(endpoint: Endpoint) -> socket.socket:
    connection = socket.create_connection((endpoint.host, endpoint.port), timeout=10)
    connection.settimeout(10)
    return connection


def receive(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    received = b""
    try:
        while part := connection.recv(MIB):
            received += part
    except ConnectionResetError:
        pass  # it closed while there was more to read
    return received


def joins(endpoint: Endpoint, secret: SharedSecret = SECRET) -> int:
    """The rank that a node gets, which joins and leaves."""
    with connect(endpoint, secret=secret, node_rank=None, num_nodes=2, **TIMES) as coordinator:
        return coordinator.node_rank


def test_a_stranger_learns_only_that_a_runner_listens(node_0: Coordinator, endpoint: Endpoint) -> None:
    with stranger(endpoint) as connection:
        connection.sendall(bytes(3 * handshake.SIZE))
        received = receive(connection)
    assert received.startswith(handshake.GREETING)
    assert received[GREETING:] == bytes(ANSWER), "refused, and nothing else"


@pytest.mark.fault("a stranger with torch's own client", "it reads and sets nothing")
@pytest.mark.filterwarnings("ignore")
def test_torchs_own_client_reads_and_sets_nothing(node_0: Coordinator, endpoint: Endpoint) -> None:
    """It could, as long as the store itself listened there."""
    with pytest.raises(DistError):
        TCPStore(endpoint.host, endpoint.port, None, False, timedelta(seconds=2), wait_for_workers=False).set("a", "b")
    assert not node_0._store.has("a")


@pytest.mark.fault("a stranger sends 100 MiB", "they are not taken")
def test_a_hundred_mebibytes_are_not_taken(node_0: Coordinator, endpoint: Endpoint) -> None:
    before, sent, block = resident_mib(), 0, bytes(MIB)
    with stranger(endpoint) as connection:
        try:
            while sent < 100 * MIB:
                connection.sendall(block)
                sent += MIB
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert sent < 20 * MIB, "what the kernel's own buffers hold"
    assert resident_mib() - before < 10
    assert joins(endpoint) == 1


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MIB


@pytest.mark.fault("silent connections", "their number is limited, and they keep nobody out")
def test_silent_connections_are_held_to_a_number_and_keep_nobody_out(node_0: Coordinator, endpoint: Endpoint) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(stranger(endpoint)) for _ in range(400)]
        assert joins(endpoint) == 1
        for connection in silent:
            connection.setblocking(False)
        open_ones = [connection for connection in silent if not is_closed(connection)]
    assert 200 < len(open_ones) <= 256


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed it, after the greeting that it sent."""
    try:
        return len(connection.recv(GREETING)) < GREETING or connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_a_proof_that_was_overheard_does_not_open_a_second_connection(node_0: Coordinator, endpoint: Endpoint) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as between:
        overheard: list[bytes] = []
        place = Endpoint(host="127.0.0.1", port=between.getsockname()[1])
        eavesdropper = threading.Thread(target=forward, args=(between, endpoint, overheard))
        eavesdropper.start()
        asyncio.run(introduce(place, SECRET))
        eavesdropper.join()
    assert len(overheard[0]) == 3 * handshake.SIZE
    with stranger(endpoint) as connection:
        connection.sendall(overheard[0])
        assert receive(connection)[GREETING:] == bytes(ANSWER)


def forward(listener: socket.socket, endpoint: Endpoint, overheard: list[bytes]) -> None:
    """Stand between a node and node 0 for one handshake."""
    with listener.accept()[0] as node, stranger(endpoint) as gate:
        node.sendall(receive_exactly(gate, GREETING))
        overheard.append(receive_exactly(node, 3 * handshake.SIZE))
        gate.sendall(overheard[0])
        node.sendall(receive_exactly(gate, ANSWER))


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    return connection.recv(size, socket.MSG_WAITALL)


async def introduce(endpoint: Endpoint, secret: SharedSecret) -> None:
    with socket.create_connection((endpoint.host, endpoint.port)) as connection:
        connection.setblocking(False)
        await handshake.introduce(connection, secret.value, "launchers")


@pytest.mark.fault("a machine that only looks like node 0", "it is told nothing")
def test_a_node_tells_an_impostor_nothing(endpoint: Endpoint) -> None:
    """It listens in place of node 0, accepts any proof, and makes one up, or sends back the node's own."""
    received: list[bytes] = []

    def accept_anything(listener: socket.socket, make_proof: Callable[[bytes], bytes]) -> None:
        with listener.accept()[0] as node:
            node.sendall(handshake.GREETING + bytes(handshake.SIZE))
            sent = receive_exactly(node, 3 * handshake.SIZE)
            node.sendall(b"\1" + make_proof(sent))
            received.append(sent + receive(node))

    for make_proof in (lambda sent: bytes(handshake.SIZE), lambda sent: sent[-handshake.SIZE :]):
        with closing(socket.create_server((endpoint.host, endpoint.port))) as listener:
            impostor = threading.Thread(target=accept_anything, args=(listener, make_proof))
            impostor.start()
            with pytest.raises(LaunchError, match="has another secret than"):
                joins(endpoint)
            impostor.join()
    assert [len(sent) for sent in received] == [3 * handshake.SIZE] * 2


@pytest.mark.fault("a machine with another secret", "it is told so at once")
def test_a_node_with_another_secret_is_told_so_at_once(
    node_0: Coordinator, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    with pytest.raises(
        LaunchError,
        match=r"^node 0 at 127\.0\.0\.1:\d+ has another secret than other/secret\. That file must be the same on every",
    ):
        joins(endpoint, OTHER)
    assert time.monotonic() - began < 5
    said = ""
    while not said.endswith("\n") and time.monotonic() - began < 10:  # node 0 says it after it has answered
        time.sleep(0.01)
        said += capsys.readouterr().err
    assert said == "refused a connection from 127.0.0.1, which has another secret\n"
    assert joins(endpoint) == 1


def test_what_answers_is_not_node_0(endpoint: Endpoint) -> None:
    """A web server, say: waited for like a node 0 that has not started, and then named."""
    with closing(socket.create_server((endpoint.host, endpoint.port))) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):  # until it is closed
                while True:
                    with listener.accept()[0] as connection:
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        server = threading.Thread(target=answer)
        server.start()
        tunnel = connect(endpoint, secret=SECRET, node_rank=1, num_nodes=2, join_s=1e-3, lost_s=1)
        with (
            pytest.raises(LaunchError, match=r"within 0\.001 s \(another program answers there, or another version of"),
            tunnel,
        ):
            pass
        listener.shutdown(socket.SHUT_RDWR)
        server.join()
