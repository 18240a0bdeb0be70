"""The secret that the launchers of a run share, so that nobody else takes part: a file that only its owner reads."""

import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from runner import durable
from runner.errors import Fault, SpecError

KEY = "launch.secret_file"
DIRECTORY, NAME = ".runner", "secret"
MIN_LENGTH, MAX_LENGTH = 32, 4096
MAKE_ONE = "(umask 077; openssl rand -hex 32 > FILE)"


@final
@dataclass(frozen=True, kw_only=True)
class SharedSecret:
    """What all launchers of a run know."""

    path: Path
    """The file that it is from, for messages."""
    value: bytes = field(repr=False)


def load_secret(given: str | None, *, run_dir: str | None) -> SharedSecret:
    """Read the secret from its file. The first launcher to look for the default file makes it.

    Args:
        given: the file that the declaration names; None = .runner/secret in the directory that all machines share:
            that of the run's directory if its path is absolute, otherwise the working directory.
        run_dir: the run's directory, as the declaration gives it.

    Raises:
        SpecError: the file is missing or cannot be made, others can read it, or it is too short.
    """
    try:
        if given is not None:
            path = Path(given).expanduser().absolute()
            if not path.exists():
                rule = f"{given} does not exist. Make it, the same on every machine: {MAKE_ONE}"
                raise SpecError(Fault(key=KEY, message=rule))
        else:
            shared = Path(run_dir).parent if run_dir is not None and Path(run_dir).is_absolute() else Path.cwd()
            path = shared / DIRECTORY / NAME
            if not path.exists():
                _make(path)
        return SharedSecret(path=path, value=_read(path))
    except OSError as error:
        rule = (
            f"the secret of the launchers cannot be read or made: {error}. Name a file of your own, made by {MAKE_ONE}"
        )
        raise SpecError(Fault(key=KEY, message=rule)) from None


def _make(path: Path) -> None:
    """Make it, whole from the moment that it has its name, unless another launcher makes it at the same time."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    durable.replace(path.parent / ".gitignore", "*\n")
    partial = durable.unfinished(path)
    try:
        durable.write_new(partial, f"{secrets.token_hex(32)}\n", mode=0o600)
        os.link(partial, path)  # unlike a rename, it never replaces a file
    except FileExistsError:
        return
    finally:
        partial.unlink(missing_ok=True)
    durable.sync_directory(path.parent)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        private = found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        content = file.read(MAX_LENGTH).strip() if private else b""
    if not private:
        rule = (
            f"{path} belongs to user {found.st_uid} and has mode {stat.S_IMODE(found.st_mode):03o}, so that others may"
            f" have read it. It must be yours (user {os.geteuid()}) with mode 600. Make a new one: delete"
            f" .runner/secret, which the next start replaces, or replace a file of your own by {MAKE_ONE}"
        )
        raise SpecError(Fault(key=KEY, message=rule))
    if len(content) < MIN_LENGTH:
        rule = f"{path} holds {len(content)} characters; a secret has {MIN_LENGTH} or more. Make it by {MAKE_ONE}"
        raise SpecError(Fault(key=KEY, message=rule))
    return content
