"""Making the directory of a new run, so that no two launches share one."""

import secrets
import time
from pathlib import Path

from runner.config.run_dir import RunDir
from runner.errors import Fault, SpecError

__all__ = ["claim", "claim_named"]


def claim(base: Path, *, key: str) -> Path:
    """Make <base>/<date>/<time>-<id>: a directory that no other launch has, not even one in the same second.

    The id is random and the last mkdir exclusive (hydra #1607: eight launches in one second shared one directory).

    Args:
        key: what names another directory.

    Raises:
        SpecError: it cannot be made.
    """
    while True:
        path = base / time.strftime("%Y-%m-%d") / f"{time.strftime('%H-%M-%S')}-{secrets.token_hex(2)}"
        if _make(path, key=key):
            return path


def claim_named(path: Path, *, key: str) -> Path:
    """Make the directory that the user named; it must not be there yet.

    Raises:
        SpecError: it is, or it cannot be made.
    """
    if not _make(path, key=key):
        raise SpecError(Fault(key=key, message=f"{path} exists already. Choose another directory{_or_continue(path)}"))
    return path


def _or_continue(path: Path) -> str:
    if RunDir(path).specs():
        return f", or continue that run: runner resume {path}"
    # A process that was killed before it could write one leaves the directory behind.
    return ": this one has no spec.yaml, so there is no run in it that runner resume could continue."


def _make(path: Path, *, key: str) -> bool:
    """Make a directory and those above it; False if it is there already."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise _not_made(path, "a parent of it is a file", key=key) from None
    except (OSError, ValueError) as error:
        raise _not_made(path, _reason(error), key=key) from None
    try:
        path.mkdir()
    except FileExistsError:
        return False
    except FileNotFoundError as error:
        if not path.parent.exists():  # another launch, whose declaration was wrong, has removed it since
            return _make(path, key=key)
        raise _not_made(path, _reason(error), key=key) from None
    except (OSError, ValueError) as error:
        raise _not_made(path, _reason(error), key=key) from None
    return True


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _not_made(path: Path, reason: str, *, key: str) -> SpecError:
    shown = f"{str(path)[:200]}…" if len(str(path)) > 200 else path
    rule = f"{shown} cannot be made: {reason}. Name a directory that this user can create: {key}=PATH"
    return SpecError(Fault(key=key, message=rule))
