"""Recipes in git repositories: git+https://HOST/PATH@REF#FILE.yaml, and the same with ssh and file.

REF is a tag, a branch or a whole commit; without it, the repository's default branch. The recipe comes with its hooks
and its conf/: the tree of the commit lies in the user's cache. None of its code runs before the person has trusted that
commit.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from runner.composition.git_cache import checkout
from runner.composition.recipe import SUFFIX, Listed, Recipe
from runner.config.nearest import did_you_mean, listed
from runner.errors import Fault, SpecError

__all__ = ["FORM", "NETWORK", "GitAddress", "find", "parse", "recipes"]

FORM = "git+https://HOST/PATH@REF#FILE.yaml"
NETWORK = True
SCHEMES = ("https", "ssh", "file")
HOST = re.compile(r"(?:[\w.+~-]+@)?(?:[a-zA-Z0-9][\w.-]*|\[[0-9a-fA-F:.]+\])(?::\d+)?", re.ASCII)
"""User, host and port, none of which ssh could take for an option."""
PATH = re.compile(r"/[^\s?#\\:*\"'<>|\0-\x1f\x7f]+")
REF = re.compile(r"[A-Za-z0-9_][\w.+/-]*", re.ASCII)
SHOWN = 12
"""Recipes of a repository that a message lists."""


class GitAddress(NamedTuple):
    """An address, taken apart."""

    url: str
    ref: str
    """Tag, branch or commit; "" = the default branch."""
    file: str
    """The recipe's path in the repository."""


def find(argument: str) -> Recipe:
    """Find a recipe in a repository, which is fetched if its commit is not in the cache yet.

    Raises:
        SpecError: the address is not one, or there is no such repository, ref or file.
    """
    url, ref, file = parse(argument)
    tree, commit = checkout(url, ref)
    path = tree / file
    if not path.is_file():
        there = sorted(str(one.relative_to(tree)) for one in tree.rglob(f"*{SUFFIX}") if "conf" not in one.parts)
        more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
        rule = f"{url} has no file {file!r} at {ref or 'HEAD'} ({commit[:12]}).{did_you_mean(file, there)}"
        raise _fault(f"{rule} It has: {listed(there[:SHOWN])}{more}.")
    revision = f"git+{url}@{commit}"
    return Recipe(path, tree=tree, address=f"{revision}#{file}", origin=f"git {commit[:12]}", revision=revision)


def recipes() -> Iterator[Listed]:
    """None: repositories announce nothing."""
    return iter(())


def parse(argument: str) -> GitAddress:
    """Take an address apart.

    Raises:
        SpecError: it is not one, holds a password, or a part of it could be taken for an option of git.
    """
    whole = argument.removeprefix("git+")
    location, _, file = whole.partition("#")
    scheme = location.partition("://")[0]
    if scheme not in SCHEMES:
        raise _fault(
            f"{argument!r}: git addresses begin with git+https://, git+ssh:// or git+file://, not {scheme}://."
        )
    try:
        host, path = urlsplit(location).netloc, location.partition("://")[2].partition("/")[2]
    except ValueError as error:
        raise _fault(f"{argument!r} is no address: {error}. Write {FORM}") from None
    if ":" in host.rpartition("@")[0]:
        rule = "holds a password, which would be recorded. Let git's credential helper give it, or use git+ssh://."
        raise _fault(f"the address of {host.rpartition('@')[2]} {rule}")
    path, at, ref = f"/{path}".rpartition("@") if "@" in path else (f"/{path}", "", "")
    good_host = HOST.fullmatch(host) if scheme != "file" else host in ("", "localhost")
    if not good_host or host.startswith("-") or not PATH.fullmatch(path):
        raise _fault(f"{argument!r} has no host and path that can be passed to git. Write {FORM}")
    if at and (not REF.fullmatch(ref) or ".." in ref):
        rule = f"{ref!r} is no name of a tag, a branch or a commit: it begins with a letter, a digit or _."
        raise _fault(f"{argument!r}: {rule} Write {FORM}")
    return GitAddress(f"{scheme}://{host}{path}", ref, _checked_file(file, argument))


def _checked_file(file: str, argument: str) -> str:
    path = PurePosixPath(file)
    if not file or path.is_absolute() or ".." in path.parts or path.suffix != SUFFIX or not file.isprintable():
        rule = f"after # stands the path of a {SUFFIX} file inside the repository, without '..'"
        raise _fault(f"{argument!r}: {rule}: #recipes/NAME{SUFFIX}")
    return str(path)


def _fault(message: str) -> SpecError:
    return SpecError(Fault(key="recipe", message=message))
