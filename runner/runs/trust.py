"""Which declarations this account has launched or accepted. A run's directory names code, as does a stranger's recipe.

Every launch leaves an empty file in the account's state directory, named by the SHA-256 of the spec file. `resume`
refuses a spec file that has none, until `--trust` accepts it. So does `train` with a recipe that is not the person's
own: its digest is that of its files, or of the commit that it came with. docs/security.md says what that is worth.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.composition.composed import Composed
from runner.composition.recipe import import_roots, is_own
from runner.config import store
from runner.errors import Fault, SpecError
from runner.sharing.contents import config_files, digests, recipe_modules
from runner.sharing.modules import targets_in

__all__ = ["remember", "remember_file", "require_trust", "require_trust_in_recipe"]

OWN = "runner."
SHOWN_TARGETS = 8


def remember(spec: bytes) -> None:
    """Let this account resume the declaration without being asked. A note on stderr if that cannot be written down.

    Args:
        spec: the content of its spec file.
    """
    _remember(_digest(spec), lost="this launch is not remembered, so `runner resume` will ask for --trust")


def remember_file(spec_path: Path) -> None:
    """Remember what is in a spec file."""
    remember(spec_path.read_bytes())


def _remember(digest: str, *, lost: str) -> None:
    try:
        path = _mark(digest)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    except (OSError, RuntimeError) as error:  # RuntimeError: the account has no home directory
        print(f"note: {error}: {lost} (docs/security.md)", file=sys.stderr, flush=True)


def require_trust(spec_path: Path, *, trust: bool, verb: str) -> None:
    """Return if this account has launched or accepted the declaration, or accepts it now. Imports nothing.

    Args:
        trust: accept it, and remember that.
        verb: which is about to run it.

    Raises:
        SpecError: it has not. Names the code that would run.
    """
    if trust:
        remember_file(spec_path)
    elif not _is_known(_digest(spec_path.read_bytes())):
        raise SpecError(Fault(key="DIR", message=_question(spec_path, verb)))


def require_trust_in_recipe(composed: Composed, *, trust: bool) -> None:
    """Return if a recipe is the person's own, or this account has accepted it, or accepts it now. Imports nothing.

    Args:
        trust: accept it, and remember that.

    Raises:
        SpecError: it has not been accepted. Names the code that would run.
    """
    if is_own(composed.recipe):
        return
    digest = _digest_of_recipe(composed)
    if trust:
        _remember(digest, lost="this recipe is not remembered, so the next `runner train` will ask for --trust")
    elif not _is_known(digest):
        raise SpecError(Fault(key="RECIPE", message=_question_of_recipe(composed)))


def _digest_of_recipe(composed: Composed) -> str:
    """Of the commit that it came with; or of its config files and the modules that its targets lead to."""
    recipe, source = composed.recipe, composed.recipe.source
    files = [] if recipe.revision else config_files(composed)
    modules = [] if source.revision else recipe_modules(composed).files
    lines = [f"{digest} {name}" for name, digest in digests([*files, *modules], recipe).items()]
    lines = sorted({recipe.revision, source.revision, *lines} - {""})
    return hashlib.sha256("\n".join(["recipe", *lines]).encode()).hexdigest()


def _is_known(digest: str) -> bool:
    try:
        return _mark(digest).exists()
    except (OSError, RuntimeError):
        return False


def _digest(spec: bytes) -> str:
    return hashlib.sha256(spec).hexdigest()


def _mark(digest: str) -> Path:
    """The file that stands for a declaration, in the place of the XDG Base Directory Specification."""
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    state = given if given.is_absolute() else Path.home() / ".local" / "state"
    return state / "runner" / "trusted" / digest


def _question(spec_path: Path, verb: str) -> str:
    stored = store.load(spec_path)
    return (
        f"this account has not launched {spec_path}, or the file has changed since. `runner {verb}` runs the code "
        f"that it names: {_code(targets_in(stored.config), stored.import_roots)}. Read it, then accept the run, once: "
        f"runner {verb} {spec_path.parent} --trust"
    )


def _question_of_recipe(composed: Composed) -> str:
    recipe = composed.recipe
    where = f" Its files: {recipe.source.tree}." if recipe.source.revision else ""
    code = _code(targets_in(composed.config), import_roots(recipe))
    return (
        f"{recipe.reference} is not yours, and this account has not accepted it, or it has changed since. Training "
        f"runs the code that it names: {code}.{where} Read it, then "
        f"accept the recipe, once: runner train {recipe.reference} --trust"
    )


def _code(targets: Sequence[str], roots: Sequence[str]) -> str:
    """The code that targets name, and where it is looked for."""
    foreign = [name for name in targets if not name.startswith(OWN)]
    more = f" and {len(foreign) - SHOWN_TARGETS} more" if len(foreign) > SHOWN_TARGETS else ""
    named = f"{', '.join(map(ascii, foreign[:SHOWN_TARGETS]))}{more}" if foreign else "only the runner's own parts"
    return f"{named}, looked for in {', '.join(map(ascii, roots))} first"
