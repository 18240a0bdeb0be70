"""Trees of git commits in the user's cache: <cache>/runner/git/<digest of the URL>/<commit>, read-only once there.

git runs as a process of its own without a terminal, hooks, filters, submodules and symbolic links, so that fetching
runs nothing that a repository brings.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from runner import durable
from runner.config.damage import Damaged, read_json
from runner.config.nearest import did_you_mean, listed
from runner.errors import Fault, SpecError

__all__ = ["Checkout", "checkout"]

COMMIT = re.compile(r"[0-9a-f]{40}")
ASK_TIMEOUT_S = 60.0
LOCAL_TIMEOUT_S = 60.0
FETCH_TIMEOUT_S = 600.0
SHOWN = 12
"""Refs of a repository that a message lists."""
OF_A_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR")
"""Variables that a git hook or alias sets, and that would lead git elsewhere."""
QUIET = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "",
    "SSH_ASKPASS_REQUIRE": "never",
    "GIT_ALLOW_PROTOCOL": "https:ssh:file",
    "LC_ALL": "C",
}
SETTINGS = ("core.hooksPath=/dev/null", "core.symlinks=false", "core.fsmonitor=false", "gc.auto=0")
ATTRIBUTES = "* -text -filter -ident -working-tree-encoding\n"
"""Files as they are in the commit, whatever its .gitattributes and the user's filters say."""


class Checkout(NamedTuple):
    """The tree of a commit."""

    tree: Path
    commit: str


def checkout(url: str, ref: str) -> Checkout:
    """The tree of what a ref names now. Asks the repository, unless the ref is a commit that is here already.

    Says on stderr what is fetched, and that a ref has moved since it was used last.

    Args:
        ref: tag, branch or whole commit; "" = the default branch.

    Raises:
        SpecError: git is missing or fails, there is no such ref, or the cache cannot be written.
    """
    home = _cache() / hashlib.sha256(url.encode()).hexdigest()[:16]
    commit, name = (ref, ref) if COMMIT.fullmatch(ref) else _resolve(url, ref)
    tree = home / commit
    try:
        if not tree.is_dir():
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            _fetch(url, name, commit, tree)
            _tell(f"fetched {url} at {commit[:12]} ({ref or 'HEAD'})")
        _note(home / "refs.json", url, ref or "HEAD", commit)
    except OSError as error:
        raise _fault(
            f"{error.filename} cannot be written: {error.strerror}. Set XDG_CACHE_HOME to a place that can."
        ) from error
    return Checkout(tree, commit)


def _cache() -> Path:
    """The place of the XDG Base Directory Specification."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (given if given.is_absolute() else Path.home() / ".cache") / "runner" / "git"
    except RuntimeError:  # the account has no home directory
        raise _fault("there is no directory for the cache: the account has no home. Set XDG_CACHE_HOME.") from None


def _resolve(url: str, ref: str) -> tuple[str, str]:
    """The commit that a ref names, and the ref's whole name.

    Raises:
        SpecError: the repository cannot be read, or has no such ref.
    """
    named = ("--tags", "--heads", "--", url) if ref else ("--", url, "HEAD")
    lines = _git("ls-remote", *named, timeout_s=ASK_TIMEOUT_S, asked=url).splitlines()
    commits = {name: commit for commit, _, name in (line.partition("\t") for line in lines)}
    names = (ref, f"refs/tags/{ref}", f"refs/heads/{ref}") if ref else ("HEAD",)
    found = [name for name in names if name in commits]
    if not found:
        short = {name.split("/", 2)[2] for name in commits if name.startswith(("refs/tags/", "refs/heads/"))}
        short = {name for name in short if not name.endswith("^{}")}
        more = f" and {len(short) - SHOWN} more" if len(short) > SHOWN else ""
        rule = f"{url} has no tag or branch {ref!r}.{did_you_mean(ref, short)}"
        there = f"{listed(sorted(short)[:SHOWN])}{more}"
        raise _fault(f"{rule} It has: {there}. A commit is given with all of its 40 digits.")
    peeled = [commits.get(f"{name}^{{}}", commits[name]) for name in found]  # an annotated tag names its commit so
    if len(set(peeled)) > 1:
        raise _fault(f"{ref!r} is a tag and a branch of {url}. Say which one: @{' or @'.join(found)}")
    return peeled[0], found[0]


def _fetch(url: str, name: str, commit: str, tree: Path) -> None:
    """Put the files of a commit where they belong, in one rename.

    Args:
        name: the whole name of a ref, or the commit.
    """
    with TemporaryDirectory(dir=tree.parent, prefix=".fetching-") as scratch:
        work = Path(scratch, "tree")
        _git("init", "--quiet", "--template=", str(work), asked=url)
        (work / ".git" / "info").mkdir(exist_ok=True)
        (work / ".git" / "info" / "attributes").write_text(ATTRIBUTES)
        fetch = ("fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules")
        _git(*fetch, "--", url, name, cwd=work, timeout_s=FETCH_TIMEOUT_S, asked=url)
        found = _git("rev-parse", "--verify", "FETCH_HEAD^{commit}", cwd=work, asked=url).strip()
        if found != commit:
            raise _fault(f"{name} of {url} moved from {commit[:12]} to {found[:12]} while it was fetched. Try again.")
        _git("checkout", "--quiet", "--detach", commit, cwd=work, timeout_s=FETCH_TIMEOUT_S, asked=url)
        shutil.rmtree(work / ".git")
        for path in work.rglob("*"):
            if path.is_file():
                path.chmod(0o444)
        with contextlib.suppress(FileExistsError):
            _rename_new(work, tree)


def _rename_new(work: Path, tree: Path) -> None:
    """Raises FileExistsError where another process was faster: a commit has the same files each time."""
    try:
        work.rename(tree)
    except OSError:
        if not tree.is_dir():
            raise
        raise FileExistsError(str(tree)) from None


def _note(path: Path, url: str, ref: str, commit: str) -> None:
    """Remember what a ref names, and tell if that is another commit than before."""
    try:
        known = read_json(path, _texts)
    except (FileNotFoundError, Damaged):
        known = {}
    before = known.get(ref, commit)
    if before != commit:
        _tell(f"{ref} of {url} has moved from {before[:12]} to {commit[:12]} since it was last used here")
    if known.get(ref) != commit:
        durable.replace(path, json.dumps({**known, ref: commit}, indent=1) + "\n")


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise ValueError("it does not hold names of refs and commits")
    return value


def _git(*words: str, asked: str, cwd: Path | None = None, timeout_s: float = LOCAL_TIMEOUT_S) -> str:
    """Run git and return its output.

    Args:
        asked: the URL, for messages.

    Raises:
        SpecError: git is missing, fails or takes too long; what it started is killed then.
    """
    environment = {name: value for name, value in os.environ.items() if name not in OF_A_REPOSITORY} | QUIET
    settings = [word for setting in SETTINGS for word in ("-c", setting)]
    try:
        process = subprocess.Popen(
            ["git", *settings, *words],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # no terminal to ask on, and one group to kill
        )
    except FileNotFoundError:
        raise _fault("git must be installed to fetch a recipe from a repository.") from None
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise _fault(
            f"{asked} did not answer within {timeout_s:.0f} s. Try again, or clone it and name the file."
        ) from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        raise _fault(
            f"git cannot read {asked}: {_reason(errors)} Correct the address, or the access that git has to it."
        )
    return output


def _reason(errors: str) -> str:
    """What git says, on one line that no terminal obeys."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("fatal:", "error:", "ssh:"))] or lines[-1:]
    text = " ".join(telling)[:300].removeprefix("fatal: ") or "it gives no reason"
    return "".join(one if one.isprintable() else "?" for one in text).rstrip(".") + "."


def _tell(line: str) -> None:
    print(f"note: {line}", file=sys.stderr, flush=True)


def _fault(message: str) -> SpecError:
    return SpecError(Fault(key="recipe", message=message))
