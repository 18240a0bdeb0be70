"""What tests of faults share: the command as a process of its own beside others, and disks that can be filled or fail.

The project, and the command as a quick fork of a prepared process, are those of tests/conftest.py.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import final

import psutil
import pytest

from tests.conftest import CHECKOUT, Ended


@final
class Process:
    """A process in a session of its own, with all that it starts."""

    def __init__(self, argv: list[str], *, cwd: Path, scratch: Path, env: dict[str, str]) -> None:
        self.argv = argv
        self._files = [scratch / f"{name}_{time.time_ns()}" for name in ("stdout", "stderr")]
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self._process = subprocess.Popen(
                argv,
                cwd=cwd,
                stdout=out,
                stderr=err,
                env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", **env},
                start_new_session=True,
            )
        self.pid = self._process.pid

    def send(self, number: signal.Signals) -> None:
        """To this process alone."""
        self._process.send_signal(number)

    def wait_until(self, condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
        """Until it holds; fails if the process ends before."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            ended = self._process.poll()
            assert ended is None, f"{self.argv} ended with {ended} before {what}:\n{self.output()}"
            assert time.monotonic() < deadline, f"no {what} within {timeout_s} s:\n{self.output()}"
            time.sleep(0.01)

    def end(self, timeout_s: float = 60) -> Ended:
        """Its end; past the limit its whole tree is killed and its output shown."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill_tree()
            raise AssertionError(f"{self.argv} ran past {timeout_s} s:\n{self.output()}") from None
        return Ended(code, self._files[0].read_text(), self._files[1].read_text())

    def output(self) -> str:
        """What it has written."""
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in self._files)

    def kill_tree(self) -> None:
        """SIGKILL it and everything that it has started; returns once none of them is left."""
        try:
            tree = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            tree = []
        for one in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self._process.wait()
        psutil.wait_procs(tree, timeout=10)


@pytest.fixture
def process(project: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start `runner` as a process of its own, beside others: process("train", "points").end(timeout_s=60)."""
    started: list[Process] = []

    def start(*argv: str, env: dict[str, str] | None = None) -> Process:
        words = [sys.executable, "-m", "runner", *argv]
        started.append(Process(words, cwd=project, scratch=tmp_path, env=env or {}))
        return started[-1]

    yield start
    for one in started:
        one.kill_tree()


@final
class Disk:
    """A small file system of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, *, leave: int = 0) -> None:
        """Take the room that is left, to the last byte or down to so many bytes."""
        with (self.path / "filler").open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                while _fits(file, size):
                    pass
            if leave:
                os.ftruncate(file.fileno(), max(0, file.tell() - leave))

    def empty(self) -> None:
        """Give back what `fill` took."""
        (self.path / "filler").unlink()


def _fits(file: FileIO, size: int) -> bool:
    try:
        return file.write(bytes(size)) == size
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Disk]]:
    """Mount a file system of so many KiB: disk(4096). Skips the test where that is not permitted."""
    mounted: list[Path] = []

    def mount(kib: int) -> Disk:
        path = tmp_path / f"disk_{len(mounted)}"
        path.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(path)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
        mounted.append(path)
        return Disk(path)

    yield mount
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Disk]:
    """An ext4 file system in a file, mounted. Skips the test where that is not permitted."""
    image, path = tmp_path / "image", tmp_path / "ext4"
    path.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    for words in (["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(path)]):
        try:
            subprocess.run(words, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"an ext4 file system cannot be mounted here: {error}")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)


GOING_DOWN = 0x8004587D
"""The request to ext4 (as to XFS) to do what it does when its device is lost: from then on it answers EIO only."""


def go_down(path: Path) -> None:
    """Make the ext4 file system at this path write what it holds, and from then on answer EIO only."""
    directory = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(directory, GOING_DOWN, struct.pack("<I", 0))
    finally:
        os.close(directory)


@final
class FailingDevice:
    """An ext4 file system on a device that can be made to fail, and whole again.

    The device is a loop device whose image is on another ext4 file system, `below`. Once that one has gone down, the
    kernel answers every request to the device with EIO.
    """

    def __init__(self, scratch: Path) -> None:
        self.below = scratch / "below"
        self.path = scratch / "failing"
        self._mounted: list[tuple[Path, Path]] = []
        for path in (self.below, self.path):
            path.mkdir()
        self._make(scratch / "image", mib=48)
        self._mount(scratch / "image", self.below)
        self._make(self.below / "image", mib=16)

    def mount(self, path: Path | None = None) -> None:
        """Mount it at `self.path`, or at another directory."""
        self._mount(self.below / "image", path or self.path)

    def move(self, path: Path) -> None:
        """Unmount it, and mount it at another directory."""
        self._unmount()
        self.mount(path)

    def fail(self) -> None:
        """From now on, every request to the device fails."""
        go_down(self.below)

    def mend(self) -> None:
        """Whole again, as after a start of the machine: all is mounted anew, where it was."""
        *_, (path, _) = self._mounted
        while self._mounted:
            self._unmount()
        self._mount(self.below.parent / "image", self.below)
        self.mount(path)

    def discard(self) -> None:
        """Unmount all, whether it is in use or not."""
        for path, _ in reversed(self._mounted):
            subprocess.run(["umount", "--lazy", str(path)], check=False)

    @staticmethod
    def _make(image: Path, *, mib: int) -> None:
        with image.open("wb") as file:
            file.truncate(mib << 20)
        _call("mkfs.ext4", "-q", str(image))

    def _mount(self, image: Path, path: Path) -> None:
        _call("mount", "-o", "loop", str(image), str(path))
        self._mounted.append((path, image))

    def _unmount(self) -> None:
        unmount(*self._mounted[-1])
        self._mounted.pop()


def _call(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def unmount(path: Path, image: Path) -> None:
    """Unmount what is in an image, and wait until no loop device holds it.

    A process that was started in a mount namespace of its own meanwhile keeps the file system: mounted again, it would
    be the same one, with its errors.
    """
    _call("umount", str(path))
    deadline = time.monotonic() + 60
    while _call("losetup", "--associated", str(image)):
        assert time.monotonic() < deadline, f"a mount namespace of another process still holds {image}"
        time.sleep(0.05)


@pytest.fixture
def failing_device(tmp_path: Path) -> Iterator[FailingDevice]:
    """A device that can be made to fail, not yet mounted. Skips the test where that is not permitted."""
    try:
        found = FailingDevice(tmp_path)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"an ext4 file system cannot be mounted here: {error}")
    yield found
    found.discard()


@final
class Btrfs:
    """A btrfs file system: it knows quotas, and finds by its checksums what its device has changed."""

    def __init__(self, scratch: Path) -> None:
        self.path = scratch / "btrfs"
        self._image = scratch / "btrfs_image"
        self._spoiled: list[int] = []
        self.path.mkdir()
        with self._image.open("wb") as file:
            file.truncate(128 << 20)
        _call("mkfs.btrfs", "--quiet", "--metadata", "single", str(self._image))
        self._mount()

    def limit(self, mib: int | None) -> None:
        """Set the quota of all of it, which holds for root as well; None = no quota."""
        _call("btrfs", "quota", "enable", str(self.path))
        _call("btrfs", "qgroup", "limit", f"{mib}M" if mib else "none", str(self.path))

    def spoil(self, *files: Path) -> None:
        """Change the last byte of files on the device: from now on, reading that part of them is EIO."""
        contents = [file.read_bytes() for file in files]
        with self._device() as device:
            for content in contents:
                found = _places(device, content)
                assert found, "the file is not on the device in one piece"
                self._spoiled += [place + len(content) - 1 for place in found]
            self._flip(device)

    def mend(self) -> None:
        """Give the device back what it had."""
        with self._device() as device:
            self._flip(device)
        self._spoiled.clear()

    def _flip(self, device: mmap.mmap) -> None:
        for place in self._spoiled:
            device[place] ^= 0xFF

    @contextlib.contextmanager
    def _device(self) -> Iterator[mmap.mmap]:
        """The bytes of the device, while the file system is unmounted; afterwards nothing of it is in memory."""
        unmount(self.path, self._image)
        with self._image.open("r+b") as image, mmap.mmap(image.fileno(), 0) as device:
            yield device
        self._mount()

    def _mount(self) -> None:
        # A small file has blocks of its own, too: among the metadata, a change would make the whole of it unreadable.
        _call("mount", "-o", "loop,max_inline=0", str(self._image), str(self.path))


def _places(device: mmap.mmap, content: bytes) -> list[int]:
    """Wherever this content is: the file, and what is left of older ones like it."""
    found = [device.find(content)]
    while found[-1] >= 0:
        found.append(device.find(content, found[-1] + 1))
    return found[:-1]


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Btrfs]:
    """A btrfs file system, mounted. Skips the test where that is not permitted."""
    try:
        found = Btrfs(tmp_path)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a btrfs file system cannot be mounted here: {error}")
    yield found
    subprocess.run(["umount", "--lazy", str(found.path)], check=False)
