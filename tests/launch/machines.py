"""The command on several machines: processes side by side, or network hosts of their own."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import final

from tests.conftest import Started


@final
class Node:
    """The command on one machine, in a session of its own."""

    def __init__(self, process: Started) -> None:
        self._process = process

    def send(self, number: signal.Signals) -> None:
        """To the launcher alone; its ranks die with it."""
        self._process.send_signal(number)

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def end(self, timeout_s: float = 60) -> tuple[int, str, str]:
        """Exit code, stdout and stderr; past the timeout the whole tree is killed and its output shown."""
        ended = self._process.wait(timeout_s)
        return ended.code, ended.stdout, ended.stderr

    def kill(self) -> None:
        """Ranks have sessions of their own and die with it (PR_SET_PDEATHSIG)."""
        self._process.kill()


StartNode = Callable[..., Node]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.02)


ADDRESSES = ("10.213.7.1", "10.213.7.2")
NAMES = ("node-zero", "node-one")


@contextmanager
def two_hosts(name: str) -> Iterator[list[str]]:
    """The names of two network namespaces that a pair of virtual interfaces joins.

    Each knows both by ADDRESSES and NAMES, itself as 127.0.1.1, as Debian's installer has it.
    """
    spaces = [f"{name}-{number}" for number in range(2)]
    links = [f"{name}{number}" for number in range(2)]
    etc = [Path("/etc/netns") / space for space in spaces]
    try:
        _ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for number, (space, link, address) in enumerate(zip(spaces, links, ADDRESSES, strict=True)):
            _ip("netns", "add", space)
            _ip("link", "set", link, "netns", space)
            _ip("-n", space, "address", "add", f"{address}/24", "dev", link)
            for up in (link, "lo"):
                _ip("-n", space, "link", "set", up, "up")
            known = [f"127.0.1.1 {NAMES[number]}", f"{ADDRESSES[1 - number]} {NAMES[1 - number]}"]
            etc[number].mkdir(parents=True)
            (etc[number] / "hosts").write_text("\n".join(["127.0.0.1 localhost", *known]) + "\n")
        yield spaces
    finally:
        subprocess.run(["ip", "link", "delete", links[0]], check=False, capture_output=True)
        for space, settings in zip(spaces, etc, strict=True):
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)
            shutil.rmtree(settings, ignore_errors=True)


def can_make_hosts() -> bool:
    """Whether this process may make network namespaces."""
    try:
        _ip("netns", "add", f"probe-{os.getpid()}")
        _ip("netns", "delete", f"probe-{os.getpid()}")
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
