"""A process that has imported what commands need and forks once for each: a command without its start-up.

`python tests/zygote.py NAME [MODULE… | WORD=MODULE,…]` imports these modules, too, as far as they are installed, and
listens at the abstract Unix socket NAME until something comes on its stdin, or that is closed. At NAME-WORD listens a
fork of it, made for the first connection, that has imported the modules of this word. A connection is one command: an
object of JSON ({script, argv, cwd, env, within, forks}) that comes with three descriptors (stdin, stdout, stderr). The
answer is {"pid": …}, and when the command has ended {"code": …}. A command is what it is in a terminal: a fresh
process, its main thread alone, the leader of a session. Without a script, it is `runner`. `within` is what it sees of
the machine: the network namespace `host`, which `ip netns` has made, or an empty directory `hidden`. If `forks`, the
Python modules that it starts as new interpreters are forks, too; see `fork_interpreters`.
"""

import contextlib
import ctypes
import fcntl
import gc
import importlib
import inspect
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

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
    commands: dict[int, tuple[int, socket.socket]] = {}
    print("ready", flush=True)
    while sys.stdin not in (ready := select.select([listening, *waiting, *commands, sys.stdin], [], [])[0]):
        if listening in ready:
            _start(listening, commands, others=waiting)
        for one in ready:
            if one in commands:
                _tell_the_end(one, *commands.pop(one))
        called = next((one for one in waiting if one in ready), None)
        if called is None:
            continue
        called_for = waiting.pop(called)
        if os.fork():
            called.close()
            continue
        _forget(listening, commands, others=waiting)
        listening = called
        _be_ready(called_for)


def _listen(name: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind("\0" + name)
    listening.listen(64)
    return listening


def _be_ready(modules: Sequence[str]) -> None:
    stderr = os.dup(2)
    with open(os.devnull, "w") as nothing:  # torchao names the devices that it has not found
        os.dup2(nothing.fileno(), 2)
    preload_libraries(modules)
    sys.stderr.flush()
    os.dup2(stderr, 2)
    os.close(stderr)
    gc.freeze()


def _start(
    listening: socket.socket, commands: dict[int, tuple[int, socket.socket]], *, others: dict[socket.socket, list[str]]
) -> None:
    """Start the command of a connection, and remember it by a descriptor that can be read when it has ended."""
    connection, _ = listening.accept()
    request, descriptors, _, _ = socket.recv_fds(connection, LONGEST, 3)
    if len(descriptors) == 3:  # otherwise, a client that gave up
        pid = os.fork()
        if pid == 0:
            connection.close()
            _forget(listening, commands, others=others)
            _be_the_command(json.loads(request), descriptors)
        with contextlib.suppress(OSError):  # a client that has gone
            connection.send(json.dumps({"pid": pid}).encode())
        commands[os.pidfd_open(pid)] = pid, connection
    for descriptor in descriptors:  # a pipe ends when the command has left it
        os.close(descriptor)


def _tell_the_end(descriptor: int, pid: int, connection: socket.socket) -> None:
    os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    with connection, contextlib.suppress(OSError):  # a client that has gone
        connection.send(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())


def _forget(
    listening: socket.socket, commands: dict[int, tuple[int, socket.socket]], *, others: dict[socket.socket, list[str]]
) -> None:
    """What a fork has nothing to do with."""
    for one in (listening, *others, *(connection for _, connection in commands.values())):
        one.close()
    for descriptor in commands:
        os.close(descriptor)
    commands.clear()
    others.clear()


def preload() -> None:
    """Import what every rank imports before its first step: 3 s of CPU."""
    import torch._dynamo
    import torch.distributed.checkpoint  # noqa: F401


def preload_libraries(modules: Sequence[str]) -> None:
    """Import them as far as they are installed. DeepSpeed sets a variable of the environment, which is put back."""
    environment = dict(os.environ)
    for module in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    os.environ.clear()
    os.environ.update(environment)


def preload_commands() -> None:
    """Import the runner and Hydra, and compose once, which fills Hydra's own tables: 0.15 s of CPU of each command."""
    import runner
    from runner.composition.compose import compose
    from runner.composition.find_recipe import find

    for module in pkgutil.walk_packages(runner.__path__, f"{runner.__name__}."):
        if module.name != "runner.__main__":
            with contextlib.suppress(ImportError):  # an optional library is missing
                importlib.import_module(module.name)
    compose(find("digits"), [])


def _be_the_command(asked: dict[str, Any], descriptors: Any) -> None:
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.update(asked["env"])
    tempfile.tempdir = None  # found again, by this environment

    def command() -> int:
        _enter(**asked.get("within") or {})
        if asked.get("forks"):
            fork_interpreters()
        os.chdir(asked["cwd"])
        return _run(asked["script"], asked["argv"])

    _run_and_leave(command)


def _run_and_leave(function: Callable[[], int]) -> NoReturn:
    code = 1
    try:
        code = function()
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


PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")


def fork_interpreters() -> None:
    """Let each `sys.executable -m MODULE …` that this process starts be a fork of what this process is now.

    Importing torch takes an interpreter 4 s of CPU. To the system and to subprocess the fork is a child of this
    process: a process between them makes it and ends, and meanwhile this one adopts orphans. It has the arguments, the
    environment, the descriptors, the directory, the session and the signals that a new interpreter would have. What it
    does not do is to import.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = os.getpid()
    if os.fork() == 0:
        ours.close()
        _serve_interpreters(theirs, command)
    theirs.close()
    execute_child: Any = vars(subprocess.Popen)["_execute_child"]
    names = list(inspect.signature(execute_child).parameters)[1:]
    process_wide = threading.Lock()

    def start(self: Any, *args: Any) -> None:
        how = dict(zip(names, args, strict=True))
        if os.getpid() != command or not _is_module(how):
            return execute_child(self, *args)
        with process_wide, _held_back() as mask:
            _prctl(PR_SET_CHILD_SUBREAPER, 1)
            socket.send_fds(ours, [json.dumps(_interpreter(how, mask)).encode()], _descriptors(how))
            self.pid = int(ours.recv(LONGEST))
            _prctl(PR_SET_CHILD_SUBREAPER, 0)
        self._child_created = True
        return self._close_pipe_fds(*(how[name] for name in PIPES))

    subprocess.Popen._execute_child = start  # type: ignore[attr-defined]


def _is_module(how: dict[str, Any]) -> bool:
    """Whether this is a module for a new interpreter, as fork_interpreters can make one."""
    ordinary = how["close_fds"] and not how["shell"] and how["preexec_fn"] is None and how["executable"] is None
    own = all(how[name] is None for name in ("gid", "gids", "uid")) and how["umask"] < 0
    words = [] if isinstance(how["args"], (str, bytes, os.PathLike)) else list(how["args"])
    return ordinary and own and words[:1] == [sys.executable] and "-m" in words[1:3]


def _interpreter(how: dict[str, Any], mask: list[int]) -> dict[str, Any]:
    words = list(how["args"])
    number = words.index("-m")
    ignored = [one for one in signal.valid_signals() if signal.getsignal(one) is signal.SIG_IGN]
    return {
        "module": words[number + 1],
        "argv": words[number + 2 :],
        "options": words[1:number],
        "cwd": str(Path.cwd() / (how["cwd"] or "")),
        "env": dict(os.environ if how["env"] is None else how["env"]),
        "numbers": [0, 1, 2, *how["pass_fds"]],
        "session": how["start_new_session"],
        "group": how["process_group"],
        "ignored": ignored,
        "mask": mask,
    }


def _descriptors(how: dict[str, Any]) -> list[int]:
    own = (how["p2cread"], how["c2pwrite"], how["errwrite"])
    return [*(number if given == -1 else given for number, given in enumerate(own)), *how["pass_fds"]]


@contextlib.contextmanager
def _held_back() -> Iterator[list[int]]:
    """Block all signals; those that were blocked before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield [int(one) for one in before]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve_interpreters(connection: socket.socket, command: int) -> NoReturn:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(number, signal.SIG_IGN)  # those to the command's group
    with open(os.devnull, "r+b") as nothing:
        for descriptor in range(3):  # a pipe ends when the command has left it
            os.dup2(nothing.fileno(), descriptor)
    while os.getppid() == command:
        request, descriptors, _, _ = socket.recv_fds(connection, LONGEST, 253)
        if not request:
            break
        between = os.fork()
        if between == 0:
            if os.fork():
                os._exit(0)
            while os.getppid() != command:
                time.sleep(0.0005)
            connection.send(str(os.getpid()).encode())
            _run_and_leave(partial(_be_an_interpreter, json.loads(request), descriptors))
        os.waitpid(between, 0)
        for descriptor in descriptors:
            os.close(descriptor)
    os._exit(0)


def _be_an_interpreter(asked: dict[str, Any], descriptors: list[int]) -> int:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN if number in asked["ignored"] else signal.SIG_DFL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    if signal.SIGINT not in asked["ignored"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked["session"]:
        os.setsid()
    elif asked["group"] >= 0:
        os.setpgid(0, asked["group"])
    aside = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 512) for descriptor in descriptors]
    for descriptor, wanted in zip(aside, asked["numbers"], strict=True):
        os.dup2(descriptor, wanted)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in asked["numbers"]:
            with contextlib.suppress(OSError):  # that of the list itself
                os.close(descriptor)
    os.chdir(asked["cwd"])
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(asked["env"])
    tempfile.tempdir = None  # found again, by this environment
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    first = [] if "-P" in asked["options"] else [os.getcwd()]
    sys.path[:] = [*first, *given, *(path for path in sys.path if path not in before)]
    sys.argv = ["-m", *asked["argv"]]
    sys.modules.pop(asked["module"], None)  # the program is another one than the module of this name
    signal.pthread_sigmask(signal.SIG_SETMASK, asked["mask"])
    runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
    return 0


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
