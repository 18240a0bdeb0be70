"""Parameter groups: those that decay and those that do not."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch.nn import Parameter

from runner.errors import HookError


def check_patterns(no_decay: Sequence[str]) -> None:
    """Own-field rule of every optimizer part.

    Raises:
        ValueError: a pattern that is no regular expression.
    """
    for pattern in no_decay:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"no_decay has {pattern!r}, which is no regular expression: {error}.") from None


def decay_groups(named_parameters: Iterable[tuple[str, Parameter]], no_decay: Sequence[str]) -> list[dict[str, Any]]:
    """Split by name: a parameter in whose name a pattern of `no_decay` is found (re.search) gets weight_decay=0.

    Raises:
        HookError: there is nothing to train.
    """
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    if not trained:
        raise HookError("the model has no parameter that requires a gradient: there is nothing to train.")
    patterns = [re.compile(pattern) for pattern in no_decay]
    decays: list[tuple[str, Parameter]] = []
    spared: list[tuple[str, Parameter]] = []
    for name, parameter in trained:
        (spared if any(pattern.search(name) for pattern in patterns) else decays).append((name, parameter))
    groups: list[dict[str, Any]] = [{"params": decays}] if decays else []
    return groups + ([{"params": spared, "weight_decay": 0.0}] if spared else [])
