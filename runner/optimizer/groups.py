"""Parameter groups: which parameters have a rate or a decay of their own, by patterns of their names."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch.nn import Module, Parameter

from runner.errors import Fault, HookError, SpecError

GROUP_KEYS = ("match", "lr_factor", "weight_decay")
SHOWN = 12  # names in an error
Named = list[tuple[str, Parameter]]


def check_patterns(no_decay: Sequence[str], groups: Sequence[Mapping[str, Any]]) -> None:
    """Own-field rule of every optimizer part.

    Raises:
        ValueError: a pattern that is no regular expression, or a group that says nothing or something else.
    """
    for pattern in no_decay:
        _check_pattern("no_decay", pattern)
    for group in groups:
        unknown = [key for key in group if key not in GROUP_KEYS]
        if unknown or "match" not in group or len(group) < 2:
            raise ValueError(
                f"groups={dict(group)}: a group is written {{match: PATTERN, lr_factor: 0.1, weight_decay: 0.0}}, with "
                "one or both of the last two."
            )
        _check_pattern("groups", group["match"])
        for key in ("lr_factor", "weight_decay"):
            value = group.get(key, 0.0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"groups={dict(group)}: {key} must be a number of at least 0.")


def group_checks(groups: Sequence[Mapping[str, Any]]) -> Iterator[Callable[[Module], Iterable[Fault]]]:
    """The `model_checks` of every optimizer part: each group must take a parameter."""

    def check(model: Module) -> Iterator[Fault]:
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        return _group_faults(trained, groups)

    if groups:
        yield check


def parameter_groups(
    named_parameters: Iterable[tuple[str, Parameter]],
    *,
    lr: float | None,
    no_decay: Sequence[str],
    groups: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """What torch's optimizers take: first the parameters that no group takes, then each group in its order.

    A parameter goes into the first group whose pattern is found in its name (re.search). One in whose name a pattern of
    `no_decay` is found gets weight_decay=0, unless its group has a decay.

    Args:
        lr: the rate that lr_factor multiplies.

    Raises:
        HookError: there is nothing to train.
        SpecError: a group takes no parameter.
    """
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    if not trained:
        raise HookError("the model has no parameter that requires a gradient: there is nothing to train.")
    if faults := list(_group_faults(trained, groups)):
        raise SpecError(*faults)
    rest = trained
    made: list[dict[str, Any]] = []
    for group in groups:
        taken = [named for named in rest if re.search(group["match"], named[0])]
        rest = [named for named in rest if not re.search(group["match"], named[0])]
        made += _split(taken, [] if "weight_decay" in group else no_decay, _settings(group, lr))
    return _split(rest, no_decay, {}) + made


def _split(named: Named, no_decay: Sequence[str], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those that decay as the rest does, and those that do not."""
    spared = [one for one in named if any(re.search(pattern, one[0]) for pattern in no_decay)]
    names = {name for name, _ in spared}
    decays = [one for one in named if one[0] not in names]
    groups: list[dict[str, Any]] = [{"params": decays, **settings}] if decays else []
    return groups + ([{"params": spared, **settings, "weight_decay": 0.0}] if spared else [])


def _settings(group: Mapping[str, Any], lr: float | None) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if "lr_factor" in group:
        assert lr is not None, "check() refuses factors of a rate that is not there"
        settings["lr"] = lr * group["lr_factor"]
    if "weight_decay" in group:
        settings["weight_decay"] = float(group["weight_decay"])
    return settings


def _group_faults(trained: Named, groups: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    """Groups that take no parameter."""
    rest = trained
    for group in groups:
        left = [named for named in rest if not re.search(group["match"], named[0])]
        if len(left) == len(rest):
            yield _takes_nothing(group["match"], trained)
        rest = left


def _takes_nothing(pattern: str, trained: Named) -> Fault:
    earlier = any(re.search(pattern, name) for name, _ in trained)
    what = "is found only in names that earlier groups take" if earlier else "is found in no trained parameter's name"
    names = [name for name, _ in trained]
    more = f", … ({len(names)} in all)" if len(names) > SHOWN else ""
    rule = f"{pattern!r} {what}. Correct or drop it. Names: {', '.join(names[:SHOWN])}{more}."
    return Fault(key="optimizer.groups", message=rule)


def _check_pattern(field: str, pattern: Any) -> None:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"{field} has {pattern!r}, which is no regular expression: {error}.") from None
