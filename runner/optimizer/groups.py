"""Parameter groups: learning rates and weight decay per parameter, selected by patterns on parameter names."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from runner.errors import Fault, ModelError, SpecError

if TYPE_CHECKING:
    from torch.nn import Module, Parameter

GROUP_KEYS = ("match", "lr_factor", "weight_decay")
MAX_SHOWN = 12  # parameter names in an error message
NamedParameters: TypeAlias = "list[tuple[str, Parameter]]"


def check_patterns(no_decay: Sequence[str], groups: Sequence[Mapping[str, Any]]) -> None:
    """Validate the fields that all optimizer parts share.

    Raises:
        ValueError: a pattern is not a regular expression, or a group has unknown, missing or invalid keys.
    """
    for pattern in no_decay:
        _check_pattern("no_decay", pattern)
    for group in groups:
        unknown = [key for key in group if key not in GROUP_KEYS]
        if unknown or "match" not in group or len(group) < 2:
            raise ValueError(
                f"groups={dict(group)}: write a group as {{match: PATTERN, lr_factor: 0.1, weight_decay: 0.0}}, with "
                "lr_factor, weight_decay or both."
            )
        _check_pattern("groups", group["match"])
        for key in ("lr_factor", "weight_decay"):
            value = group.get(key, 0.0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"groups={dict(group)}: {key} must be a number ≥ 0.")


def group_checks(groups: Sequence[Mapping[str, Any]]) -> "Iterator[Callable[[Module], Iterable[Fault]]]":
    """The `model_checks` of every optimizer part: each group must take a parameter."""

    def check(model: "Module") -> Iterator[Fault]:
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        return _group_faults(trained, groups)

    if groups:
        yield check


def parameter_groups(
    named_parameters: "Iterable[tuple[str, Parameter]]",
    *,
    lr: float | None,
    no_decay: Sequence[str],
    groups: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Build torch's parameter groups: first the parameters that match no group, then the groups in the given order.

    A parameter belongs to the first group whose pattern matches anywhere in its name (re.search). A parameter whose
    name matches a `no_decay` pattern gets weight_decay=0 unless its group sets weight_decay.

    Args:
        lr: the base learning rate, which lr_factor multiplies.

    Raises:
        ModelError: no parameter requires a gradient.
        SpecError: a group matches no parameter.
    """
    trainable = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    if not trainable:
        raise ModelError("the model has no parameter that requires a gradient: there is nothing to train.")
    if faults := list(_group_faults(trainable, groups)):
        raise SpecError(*faults)
    rest = trainable
    matched_groups: list[dict[str, Any]] = []
    for group in groups:
        matched = [named for named in rest if re.search(group["match"], named[0])]
        rest = [named for named in rest if not re.search(group["match"], named[0])]
        matched_groups += _split(matched, [] if "weight_decay" in group else no_decay, _options(group, lr))
    return _split(rest, no_decay, {}) + matched_groups


def _split(named: NamedParameters, no_decay: Sequence[str], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Split into up to two groups with the same options: one with the default weight decay and one without decay."""
    undecayed = [one for one in named if any(re.search(pattern, one[0]) for pattern in no_decay)]
    names = {name for name, _ in undecayed}
    decayed = [one for one in named if one[0] not in names]
    groups: list[dict[str, Any]] = [{"params": decayed, **options}] if decayed else []
    return groups + ([{"params": undecayed, **options, "weight_decay": 0.0}] if undecayed else [])


def _options(group: Mapping[str, Any], lr: float | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if "lr_factor" in group:
        assert lr is not None, "check() rejects lr_factor for an optimizer without lr"
        options["lr"] = lr * group["lr_factor"]
    if "weight_decay" in group:
        options["weight_decay"] = float(group["weight_decay"])
    return options


def _group_faults(trainable: NamedParameters, groups: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    """Groups that match no parameter."""
    rest = trainable
    for group in groups:
        left = [named for named in rest if not re.search(group["match"], named[0])]
        if len(left) == len(rest):
            yield _no_match(group["match"], trainable)
        rest = left


def _no_match(pattern: str, trainable: NamedParameters) -> Fault:
    names = [name for name, _ in trainable]
    if any(re.search(pattern, name) for name in names):
        what = "matches only parameters that earlier groups contain"
    else:
        what = "matches no trainable parameter"
    more = f", … ({len(names)} in total)" if len(names) > MAX_SHOWN else ""
    rule = f"{pattern!r} {what}. Correct or remove it. Parameters: {', '.join(names[:MAX_SHOWN])}{more}."
    return Fault(key="optimizer.groups", message=rule)


def _check_pattern(field: str, pattern: Any) -> None:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"{field} contains {pattern!r}, which is not a valid regular expression: {error}.") from None
