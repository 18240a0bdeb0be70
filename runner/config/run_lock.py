"""One attempt at a time: the lock that the launching process of a run holds in the run's directory.

It is a lock of the kernel (flock) on `run.lock`, which ends with whoever holds it, however that ends; the file says who
that is, for people. Nothing is concluded from the file alone.

What flock has over the other two kinds of lock: it belongs to the open file and not to the process, as a lock of
fcntl's does, which the process would lose as soon as any of its code closed another descriptor of that file; ranks and
data loader workers that are forked from the launcher inherit it, so that the directory stays locked until the last of
them has ended, even if the launcher was killed; and every system has it. On NFS, Linux sends it to the server, where it
holds for all machines. The server of a machine that has crashed keeps it for a while, with NFS 4 usually for 90 s.

On a file system that cannot lock, a run goes on without, after a warning: refusing would forbid training on it at all.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

from runner.config.damage import warn
from runner.config.repair import remove_unfinished, repair
from runner.config.run_dir import RunDir
from runner.errors import DiskError, LaunchError

__all__ = ["Holder", "check_free", "hold"]

BUSY = (errno.EWOULDBLOCK, errno.EACCES)
CANNOT_LOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
BYTES = 512  # always as many, so that a full disk has room for them
POLL_S = 0.05
PATIENCE_S = 1.0
"""How long to wait for an attempt that is about to end."""
TRANSIENT_S = 10.0
"""How long to wait for what ends by itself: the processes that a dead launcher has left, or somebody who only looks."""


@final
@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that runs an attempt, as it has described itself in run.lock."""

    host: str
    pid: int
    since: str

    @classmethod
    def current(cls) -> Self:
        """This process, from now on."""
        return cls(host=socket.gethostname(), pid=os.getpid(), since=time.strftime("%Y-%m-%d %H:%M:%S%z"))

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.host == socket.gethostname()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextmanager
def hold(run_dir: RunDir, *, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Keep other attempts out of a run's directory while the block runs, and forked children of it.

    Files of it that are damaged are set aside first: see runner/config/repair.py. If the attempt before was ended by
    something that could not be reported (SIGKILL, a crash, a power failure), this is said on stderr, and the run counts
    as failed.

    Args:
        patience_s: how long to wait for another attempt to end.

    Raises:
        LaunchError: another attempt is under way. Says which process runs it, where, and since when.
        DiskError: a file of the run cannot be read, or the lock cannot be written.
    """
    with _locked(run_dir, patience_s) as descriptor:
        if descriptor is not None:
            _write(descriptor, run_dir.lock, vars(Holder.current()))
        try:
            yield
        finally:
            _end_attempt(run_dir, descriptor)


def _end_attempt(run_dir: RunDir, descriptor: int | None) -> None:
    with contextlib.suppress(OSError, DiskError):  # what is left behind does no harm
        state = run_dir.read_status()["state"]
        if state not in ("queued", "running"):
            run_dir.reserve.unlink(missing_ok=True)
        # If status.json could not be brought up to date, the next one to hold the lock sees that, and does it.
        if descriptor is not None and state != "running":
            _write(descriptor, run_dir.lock, {})


def check_free(run_dir: RunDir) -> None:
    """Do what `hold` does before its block, and let go: nothing else is kept out, and damaged files are mended.

    Raises:
        LaunchError, DiskError: as `hold`.
    """
    with _locked(run_dir, PATIENCE_S):
        pass


@contextmanager
def _locked(run_dir: RunDir, patience_s: float) -> Iterator[int | None]:
    """The descriptor of run.lock, locked; None on a file system that cannot lock."""
    try:
        descriptor = os.open(run_dir.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise DiskError(f"cannot open {run_dir.lock}: {error.strerror}.") from error
    try:
        locked = _lock(descriptor, run_dir, patience_s=patience_s)
        try:
            repair(run_dir)
            if locked:
                remove_unfinished(run_dir)
                _report_dead_holder(run_dir, _read(descriptor, run_dir.lock))
        except OSError as error:
            raise DiskError(f"cannot mend {error.filename or run_dir.path}: {error.strerror}.") from error
        if not locked:
            yield None
            return
        try:
            yield descriptor
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # for forked children too, which may be about to end
    finally:
        os.close(descriptor)


def _lock(descriptor: int, run_dir: RunDir, *, patience_s: float) -> bool:
    """Take the lock. False if this file system has none."""
    begun = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in CANNOT_LOCK:
                rule = "nothing keeps a second attempt at this run out. Do not start one."
                warn(f"{run_dir.path} is on a file system that cannot lock files ({error.strerror}): {rule}")
                return False
            if error.errno not in BUSY:
                raise DiskError(f"cannot lock {run_dir.lock}: {error.strerror}.") from error
        else:
            return True
        holder = _read(descriptor, run_dir.lock)
        orphaned = holder is not None and not _holds(holder, run_dir.lock)
        if time.monotonic() - begun > (TRANSIENT_S if orphaned or holder is None else patience_s):
            raise LaunchError(_refusal(run_dir, holder, orphaned=orphaned))
        time.sleep(POLL_S)


def _refusal(run_dir: RunDir, holder: Holder | None, *, orphaned: bool) -> str:
    if holder is None:
        return f"{run_dir.path} is in use: another process has locked {run_dir.lock} and does not say which it is."
    if orphaned:
        pids = ", ".join(str(pid) for pid in _open_in(run_dir.lock)) or "unknown"
        rule = f"{holder}, has ended, but processes that it started have not (process ids: {pids}). Kill them first."
        return f"{run_dir.path} is in use: the attempt of {holder.since}, {rule}"
    rule = "Two attempts would overwrite each other's files. Wait until it has ended, or stop it"
    there = "" if holder.is_here else f"on {holder.host}: "
    return f"{run_dir.path} is in use by {holder}, since {holder.since}. {rule}: {there}kill {holder.pid}"


def _report_dead_holder(run_dir: RunDir, holder: Holder | None) -> None:
    """The lock is free: a holder that is still described there has ended without a word."""
    if holder is None:
        return
    status = run_dir.read_status()
    if status["state"] in ("queued", "running"):
        run_dir.write_state("failed")
        rule = f"its last recorded step is {status['step']}, and it counts as failed now"
        warn(f"{holder}, which ran {run_dir.path} since {holder.since}, has gone without reporting an end; {rule}.")


def _read(descriptor: int, path: Path) -> Holder | None:
    """Who holds the lock, or held it when it died; None if nobody has said so."""
    try:
        content = os.pread(descriptor, BYTES, 0)
    except OSError as error:
        raise DiskError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        fields: dict[str, Any] = json.loads(content)
        return Holder(host=str(fields["host"]), pid=int(fields["pid"]), since=str(fields["since"]))
    except (ValueError, KeyError, TypeError):
        return None


def _write(descriptor: int, path: Path, fields: dict[str, Any]) -> None:
    try:
        os.pwrite(descriptor, json.dumps(fields).encode().ljust(BYTES - 1) + b"\n", 0)
        os.fsync(descriptor)  # after a power failure, too, the next attempt knows of this one
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror}.") from error


def _holds(holder: Holder, path: Path) -> bool:
    """Whether the process that this describes is still there, as far as can be seen from here."""
    if not holder.is_here or holder.pid == os.getpid():
        return True
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's, whose files cannot be seen
    return not Path("/proc/self/fd").exists() or holder.pid in _open_in(path)


def _open_in(path: Path) -> list[int]:
    """The processes on this machine that have a file open, as far as this user may see them. Linux only."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            opened = {str(entry.readlink()) for entry in (process / "fd").iterdir()}
        except OSError:
            continue  # it has ended, or belongs to somebody else
        if str(path.resolve()) in opened:
            found.append(int(process.name))
    return sorted(set(found) - {os.getpid()})
