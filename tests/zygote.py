"""A process that has imported what commands need and forks once for each: a command without its start-up.

`python tests/zygote.py NAME [MODULE… | WORD=MODULE,…]` imports these modules, too, as far as they are installed, and
listens at the abstract Unix socket NAME until something comes on its stdin, or that is closed. At NAME-WORD listens a
fork of it, made for the first connection, that has imported the modules of this word. A connection is one command: an
object of JSON ({script, argv, cwd, env, within}) that comes with three descriptors (stdin, stdout, stderr). The answer
is {"pid": …}, and when the command has ended {"code": …}. A command is what it is in a terminal: a fresh process, its
main thread alone, the leader of a session. Without a script, it is `runner`. `within` is what it sees of the machine:
the network namespace `host`, which `ip netns` has made, or an empty directory `hidden`.
"""

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LONGEST = 1 << 20
"""Bytes of a request."""


def main(name: str, *modules: str) -> None:
    del sys.path[0]  # the directory of this script
    preload()
    preload_commands()
    _be_ready([module for module in modules if "=" not in module])
    listening = _listen(name)
    words = dict(module.split("=") for module in modules if "=" in module)
    waiting = {_listen(f"{name}-{word}"): named.split(",") for word, named in words.items()}
    print("ready", flush=True)
    while sys.stdin not in (ready := select.select([listening, *waiting, sys.stdin], [], [])[0]):
        if listening in ready:
            _accept(listening, others=tuple(waiting))
            continue
        called = next(one for one in waiting if one in ready)
        called_for = waiting.pop(called)
        if os.fork():
            called.close()
            continue
        for one in (listening, *waiting):
            one.close()
        listening, waiting = called, {}
        _be_ready(called_for)


def _listen(name: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind("\0" + name)
    listening.listen(64)
    return listening


def _be_ready(modules: Sequence[str]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a module may wait for a process of its own
    stderr = os.dup(2)
    with open(os.devnull, "w") as nothing:  # torchao names the devices that it has not found
        os.dup2(nothing.fileno(), 2)
    preload_libraries(modules)
    sys.stderr.flush()
    os.dup2(stderr, 2)
    os.close(stderr)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for the commands


def _accept(listening: socket.socket, *, others: Sequence[socket.socket]) -> None:
    connection, _ = listening.accept()
    if os.fork() == 0:
        for one in (listening, *others):
            one.close()
        _serve(connection)
    connection.close()


def preload() -> None:
    """Import what every rank imports before its first step, and what DeepSpeed and compiled models do: 4 s of CPU."""
    import torch
    import torch.distributed.checkpoint

    torch.compile(_nothing)  # does not compile it yet


def _nothing() -> None:
    pass


def preload_libraries(modules: Sequence[str]) -> None:
    """Import them as far as they are installed. DeepSpeed sets a variable of the environment, which is put back."""
    environment = dict(os.environ)
    for module in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    os.environ.clear()
    os.environ.update(environment)


def preload_commands() -> None:
    """Import the runner and Hydra: 0.1 s of CPU of each command."""
    import hydra._internal.hydra  # noqa: F401

    import runner

    for module in pkgutil.walk_packages(runner.__path__, f"{runner.__name__}."):
        if module.name != "runner.__main__":
            with contextlib.suppress(ImportError):  # an optional library is missing
                importlib.import_module(module.name)


def _serve(connection: socket.socket) -> None:
    """Start the command of a connection, and tell its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, ancillary, _, _ = connection.recvmsg(LONGEST, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    descriptors = array.array("i", ancillary[0][2]) if ancillary else ()
    if len(descriptors) != 3:
        os._exit(1)  # a client that gave up
    pid = os.fork()
    if pid == 0:
        connection.close()
        _be_the_command(json.loads(request), descriptors)
    for descriptor in descriptors:  # a pipe ends when the command has left it
        os.close(descriptor)
    connection.send(json.dumps({"pid": pid}).encode())
    _, status = os.waitpid(pid, 0)
    connection.send(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())
    os._exit(0)


def _be_the_command(asked: dict[str, Any], descriptors: Any) -> None:
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.update(asked["env"])
    code = 1
    try:
        _enter(**asked.get("within") or {})
        os.chdir(asked["cwd"])
        code = _run(asked["script"], asked["argv"])
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
        code = 1 if isinstance(leaving.code, str) else leaving.code or 0
    except BaseException:  # noqa: BLE001  what the interpreter itself would print
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000


def _enter(*, host: str | None = None, hidden: str | None = None) -> None:
    """Be in a network namespace with the files of /etc/netns, as by `ip netns exec`, or where a directory is empty."""
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns and os.unshare come with Python 3.12

    def call(name: str, *args: Any) -> None:
        if getattr(libc, name)(*args):
            raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")

    if host or hidden:
        call("unshare", CLONE_NEWNS)
        call("mount", b"none", b"/", None, MS_REC | MS_SLAVE, None)
    if host:
        with open(f"/run/netns/{host}", "rb") as namespace:
            call("setns", namespace.fileno(), CLONE_NEWNET)
        for path in Path("/etc/netns", host).iterdir():
            call("mount", bytes(path), bytes(Path("/etc", path.name)), b"none", MS_BIND, None)
    if hidden:
        call("mount", b"none", hidden.encode(), b"tmpfs", 0, None)


def _run(script: str | None, argv: list[str]) -> int:
    if script is None:
        from runner.cli.main import main as command

        sys.argv = ["runner", *argv]
        return command(argv)
    sys.argv = [script, *argv]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
    return 0


if __name__ == "__main__":
    main(*sys.argv[1:])
