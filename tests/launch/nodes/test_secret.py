"""The file with the secret that launchers share."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runner.errors import SpecError
from runner.launch.nodes.secret import load_secret


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of all machines."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_launcher_makes_a_secret_and_the_others_read_it(shared: Path) -> None:
    first = load_secret(None, run_dir=None)
    assert first.path == shared / ".runner" / "secret"
    assert re.fullmatch(b"[0-9a-f]{64}", first.value)
    assert load_secret(None, run_dir="runs/two") == first
    assert repr(first.value) not in repr(first)


def test_only_its_owner_may_read_it_whatever_the_umask(shared: Path) -> None:
    before = os.umask(0)
    try:
        path = load_secret(None, run_dir=None).path
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert (path.parent / ".gitignore").read_text() == "*\n"
    assert sorted(file.name for file in path.parent.iterdir()) == [".gitignore", "secret"]


def test_launchers_that_start_together_have_one_secret(shared: Path) -> None:
    with ThreadPoolExecutor(16) as launchers:
        found = set(launchers.map(lambda _: load_secret(None, run_dir=None).value, range(64)))
    assert len(found) == 1


def test_beside_a_run_directory_that_is_absolute(shared: Path) -> None:
    runs = shared / "runs"
    assert load_secret(None, run_dir=str(runs / "one")).path == runs / ".runner" / "secret"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_secret_that_others_may_have_read_is_refused(shared: Path, mode: int) -> None:
    path = load_secret(None, run_dir=None).path
    path.chmod(mode)
    with pytest.raises(
        SpecError, match=rf"launch\.secret_file: .* has mode {mode:o}, so that others may have read it\."
    ):
        load_secret(None, run_dir=None)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file to somebody else")
def test_a_secret_of_somebody_else_is_refused(shared: Path) -> None:
    path = load_secret(None, run_dir=None).path
    os.chown(path, 12345, -1)
    with pytest.raises(SpecError, match=r"secret belongs to user 12345 and has mode 600.* It must be yours \(user 0\)"):
        load_secret(None, run_dir=None)


def test_a_file_of_ones_own_must_be_there_and_long_enough(shared: Path) -> None:
    with pytest.raises(
        SpecError, match=r"launch\.secret_file: mine does not exist\. Make it, the same on every machine"
    ):
        load_secret("mine", run_dir=None)
    mine = shared / "mine"
    mine.touch(mode=0o600)
    mine.write_text("too short\n")
    with pytest.raises(SpecError, match=r"mine holds 9 characters; a secret has 32 or more\. Make it by \(umask 077;"):
        load_secret("mine", run_dir=None)
    mine.write_text("0123456789abcdef" * 2)
    assert load_secret("mine", run_dir=None).value == b"0123456789abcdef" * 2


def test_a_secret_that_cannot_be_made_is_told(shared: Path) -> None:
    (shared / ".runner").touch()
    with pytest.raises(
        SpecError, match=r"launch\.secret_file: the secret of the launchers cannot be read or made: .*own"
    ):
        load_secret(None, run_dir=None)
