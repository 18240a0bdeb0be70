"""The libraries that the runner's distribution declares, and the extras that bring them."""

import re
from collections.abc import Iterator

__all__ = ["DISTRIBUTION", "FOR_DEVELOPMENT", "declared", "how_to_install"]

DISTRIBUTION = "hydra-runner"
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)[^;]*(?:;.*extra *== *['\"](?P<extra>[\w-]+)['\"])?")
FOR_DEVELOPMENT = ("dev", "docs", "peers", "release", "test")


def declared() -> Iterator[tuple[str, str | None]]:
    """Each library with its extra; None = it comes with the runner. Without those for developing the runner.

    Raises:
        importlib.metadata.PackageNotFoundError: the runner is not installed.
    """
    from importlib import metadata

    for text in metadata.requires(DISTRIBUTION) or ():
        requirement = REQUIREMENT.match(text)
        if requirement and requirement["extra"] not in FOR_DEVELOPMENT and requirement["name"] != DISTRIBUTION:
            yield requirement["name"], requirement["extra"]


def how_to_install(module: str) -> str:
    """A sentence with the command that installs a module, where an extra brings it; else empty."""
    from importlib import metadata

    try:
        extras = [extra for name, extra in declared() if extra and name.replace("-", "_") == module.partition(".")[0]]
    except metadata.PackageNotFoundError:
        return ""
    return f" Install it: pip install '{DISTRIBUTION}[{extras[0]}]'" if extras else ""
