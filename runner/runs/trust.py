"""Which declarations this account has launched or accepted. A run's directory names code, and `resume` runs it.

Every launch leaves an empty file in the account's state directory, named by the SHA-256 of the spec file. `resume`
refuses a spec file that has none, until `--trust` accepts it. docs/security.md says what that is worth.
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.config import store
from runner.config.parts import TARGET
from runner.errors import Fault, SpecError

__all__ = ["remember", "remember_file", "require_trust"]

OWN = "runner."
SHOWN_TARGETS = 8


def remember(spec: bytes) -> None:
    """Let this account resume the declaration without being asked. A note on stderr if that cannot be written down.

    Args:
        spec: the content of its spec file.
    """
    try:
        path = _mark(spec)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    except (OSError, RuntimeError) as error:  # RuntimeError: the account has no home directory
        rule = f"{error}: this launch is not remembered, so `runner resume` will ask for --trust"
        print(f"note: {rule} (docs/security.md)", file=sys.stderr, flush=True)


def remember_file(spec_path: Path) -> None:
    """Remember what is in a spec file."""
    remember(spec_path.read_bytes())


def require_trust(spec_path: Path, *, trust: bool, verb: str) -> None:
    """Return if this account has launched or accepted the declaration, or accepts it now. Imports nothing.

    Args:
        trust: accept it, and remember that.
        verb: what was typed before the directory, for the message.

    Raises:
        SpecError: it has not. Names the code that would run.
    """
    if trust:
        remember_file(spec_path)
    elif not _is_known(spec_path):
        raise SpecError(Fault(key="DIR", message=_question(spec_path, verb)))


def _is_known(spec_path: Path) -> bool:
    try:
        return _mark(spec_path.read_bytes()).exists()
    except (OSError, RuntimeError):
        return False


def _mark(spec: bytes) -> Path:
    """The file that stands for this declaration, in the place of the XDG Base Directory Specification."""
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    state = given if given.is_absolute() else Path.home() / ".local" / "state"
    return state / "runner" / "trusted" / hashlib.sha256(spec).hexdigest()


def _question(spec_path: Path, verb: str) -> str:
    stored = store.load(spec_path)
    targets = list(dict.fromkeys(name for name in _targets(stored.config, seen=set()) if not name.startswith(OWN)))
    more = f" and {len(targets) - SHOWN_TARGETS} more" if len(targets) > SHOWN_TARGETS else ""
    named = f"{', '.join(map(ascii, targets[:SHOWN_TARGETS]))}{more}" if targets else "only the runner's own parts"
    roots = ", ".join(map(ascii, stored.import_roots))
    return (
        f"this account has not launched {spec_path}, or the file has changed since. `runner {verb}` runs the code "
        f"that it names: {named}, looked for in {roots} first. Read it, then accept the run, once: "
        f"runner {verb} {spec_path.parent} --trust"
    )


def _targets(node: Any, *, seen: set[int]) -> Iterator[str]:
    """Every target in a configuration. YAML may name one node many times over: each is looked at once."""
    if isinstance(node, Mapping | list) and id(node) not in seen:
        seen.add(id(node))
        if isinstance(node, Mapping):
            if isinstance(node.get(TARGET), str):
                yield node[TARGET]
            node = list(node.values())
        for inner in node:
            yield from _targets(inner, seen=seen)
