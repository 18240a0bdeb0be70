"""Finds the secrets of a composition: on the command line before Hydra sees them, and in what it resolves.

Hydra writes overrides into files, logs and messages. So each value of the command line whose key names a secret is
replaced by `${runner.secret:N}`, which resolves to it in this process only.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Transformer
from hydra.errors import HydraException
from omegaconf import OmegaConf

from runner.composition.origins import COMMAND_LINE, key_of
from runner.config.masking import PLACEHOLDER, below, is_visible, key_names_a_secret, names_a_secret, secrets_inside
from runner.config.secret import PART_OF, Secret
from runner.errors import Fault, SpecError

__all__ = ["secret_overrides", "with_secrets"]

RESOLVER = "runner.secret"
NODE = re.compile(r"(?<!\\)\$\{(\.*[\w.-]+)\}")
"""An interpolation of another key."""
SOURCES = re.compile(r"(?<!\\)(?:\\\\)*\$\{(?:oc\.env|runner\.secret):")
ANOTHER = "another secret"
"""The source of a value that holds a secret that stands elsewhere."""
DEEPEST = 16
"""Interpolations of interpolations that are followed."""


@contextmanager
def secret_overrides(overrides: Sequence[str]) -> Iterator[list[str]]:
    """The overrides with placeholders for secrets, which resolve inside the block.

    Raises:
        SpecError: the value of a secret cannot be parsed, or it is inside a mapping.
    """
    values: list[Any] = []
    texts = [_replaced(text, values) for text in overrides]
    outer = OmegaConf.has_resolver(RESOLVER)  # a block inside another one, whose placeholders are there already
    if not values and outer:
        yield texts
        return
    OmegaConf.register_new_resolver(RESOLVER, lambda number: values[int(number)], replace=True)
    try:
        yield texts
    finally:
        OmegaConf.clear_resolver(RESOLVER)


def _replaced(text: str, values: list[Any]) -> str:
    key, equals, value = text.partition("=")
    if not equals or key.startswith("~"):
        return text
    if not key_names_a_secret(key):
        inside = secrets_inside(value)
        if inside and SOURCES.search(value) is None:
            rule = f"holds a secret inside a mapping. Give it by its own key: {key}.….{inside[0]}=VALUE"
            raise SpecError(Fault(key=key_of(text), message=rule, origin=COMMAND_LINE))
        return text
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        rule = f"the value, a secret that is not shown here, cannot be parsed. Quote it: '{key}=\"VALUE\"'"
        raise SpecError(Fault(key=key_of(text), message=rule, origin=COMMAND_LINE)) from None
    found: list[Any] = [override.value()]
    if override.is_sweep_override():
        found = list(override.sweep_iterator(transformer=Transformer.identity)) if override.is_discrete_sweep() else []
    if not found or any(value is None or isinstance(value, bool | dict | list) or _refers(value) for value in found):
        return text
    start = len(values)
    values += [getattr(value, "text", value) for value in found]
    return f"{key}={','.join(f'${{{RESOLVER}:{number}}}' for number in range(start, len(values)))}"


def _refers(value: Any) -> bool:
    return isinstance(value, str) and ("${" in value or value == "???")


def with_secrets(config: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved configuration with a Secret for each value that came from the environment or a placeholder.

    Args:
        raw: the same configuration before interpolations were resolved.
    """
    found: dict[str, Any] = _with_secrets(config, raw, "", raw)
    return found


def _with_secrets(value: Any, text: Any, key: str, raw: Mapping[str, Any]) -> Any:
    if isinstance(text, str) and "${" in text:
        return _resolved(value, text, key, raw)
    if isinstance(value, Mapping) and isinstance(text, Mapping):
        return {name: _with_secrets(inner, text.get(name), below(key, name), raw) for name, inner in value.items()}
    if isinstance(value, list) and isinstance(text, list):
        pairs = zip(value, text, strict=True)
        return [_with_secrets(inner, one, below(key, index), raw) for index, (inner, one) in enumerate(pairs)]
    return value


def _resolved(value: Any, text: str, key: str, raw: Mapping[str, Any]) -> Any:
    whole = NODE.fullmatch(text)
    if isinstance(value, Mapping | list):
        target = _select(raw, _absolute(whole[1], key)) if whole else None
        if target is not None:
            return _with_secrets(value, target, _absolute(whole[1], key) if whole else key, raw)
        return _all_secret(value, text) if SOURCES.search(text) else value
    template = _expanded(text, key, raw, DEEPEST)
    if is_visible(key) or SOURCES.search(template) is None or value is None:
        return value
    if PLACEHOLDER.search(template):
        return Secret(value=value, source=COMMAND_LINE if PLACEHOLDER.fullmatch(text) else ANOTHER)
    return Secret(value=value, source=template)


def _all_secret(value: Any, text: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _all_secret(inner, text) for name, inner in value.items()}
    if isinstance(value, list):
        return [_all_secret(inner, text) for inner in value]
    return Secret(value=value, source=f"{PART_OF}{text}")


def _expanded(text: str, key: str, raw: Mapping[str, Any], depth: int) -> str:
    """The text with the texts of other keys in place of their interpolations."""
    if not depth:
        return text

    def replace(found: re.Match[str]) -> str:
        other = _absolute(found[1], key)
        value = _select(raw, other)
        if value is None or isinstance(value, Mapping | list):
            return found[0]
        if SOURCES.search(str(value)) is None and names_a_secret(other.rpartition(".")[2]):
            return (
                f"${{{RESOLVER}:0}}"  # a secret that stands in a file: the text around it may be recorded, it may not
            )
        return _expanded(str(value), other, raw, depth - 1)

    return NODE.sub(replace, text)


def _absolute(path: str, key: str) -> str:
    """The key that an interpolation inside the value of `key` names; a leading dot is the node that holds it."""
    dots = len(path) - len(path.lstrip("."))
    if not dots:
        return path
    above = key.split(".")[:-dots]
    return ".".join([*above, path.lstrip(".")])


def _select(node: Any, key: str) -> Any:
    for name in key.split("."):
        if isinstance(node, Mapping):
            node = node.get(name)
        elif isinstance(node, list) and name.isdigit() and int(name) < len(node):
            node = node[int(name)]
        else:
            return None
    return node
