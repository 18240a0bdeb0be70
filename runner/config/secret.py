"""A value that does not show itself; `config/masking.py` says which values are such."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, final

__all__ = ["ENVIRONMENT", "MASK", "NO_SECRETS", "PART_OF", "Secret", "is_reference", "plain"]

MASK = "***"
PART_OF = "part of "
ENVIRONMENT = "${oc.env:"
OTHER = re.compile(r"\$\{(?!oc\.(?:env|decode):)")
"""An interpolation of something else than the environment."""


NO_SECRETS: Mapping[str, "Secret"] = MappingProxyType({})


def is_reference(source: str) -> bool:
    """Whether a value from there can be taken from the environment again."""
    return ENVIRONMENT in source and OTHER.search(source) is None and not source.startswith(PART_OF)


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class Secret:
    """A value that shows itself as `***`, also inside the repr of what holds it."""

    value: Any
    source: str
    """Where it came from: ${oc.env:NAME}, the command line, or a file."""

    def __repr__(self) -> str:
        return MASK


def plain(node: Any) -> Any:
    """A value as hooks and parts get it, without a Secret inside."""
    if isinstance(node, Secret):
        return node.value
    if isinstance(node, Mapping):
        return {name: plain(value) for name, value in node.items()}
    return [plain(value) for value in node] if isinstance(node, list) else node
