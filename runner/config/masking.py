"""Which values no file, log or message of a run may show: those of the environment, and those whose key says so.

In memory such a value is a `Secret`, which shows itself as `***`. A record holds `*** from SOURCE` in its place. Where
SOURCE is `${oc.env:NAME}`, whoever reads the record takes the value from the environment again; any other value comes
from the launcher's memory, or has to be given again.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from runner.config.parts import TARGET
from runner.config.secret import MASK, Secret, is_reference
from runner.errors import Fault

__all__ = [
    "PLACEHOLDER",
    "below",
    "collected",
    "hidden",
    "is_record_at",
    "is_visible",
    "key_names_a_secret",
    "marked",
    "names_a_secret",
    "revealed",
    "scrub_error",
    "scrubber",
    "secrets_inside",
    "shown_command",
    "shown_override",
    "shown_yaml",
]

RECORDED = re.compile(r"\*\*\* from (.+)", re.DOTALL)
INTERPOLATION = re.compile(r"\$\{oc\.env:[^{}]*\}")
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# fmt: off
SECRET_WORDS = (
    "password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials", "authorization", "apikey",
    "api_key", "api_keys", "access_key", "private_key", "signing_key", "encryption_key", "account_key", "ssh_key",
)
# fmt: on
# fmt: off
TOKEN_OWNERS = (
    "access", "api", "auth", "bearer", "bot", "csrf", "github", "gitlab", "hf", "hub", "huggingface", "jwt",
    "oauth", "personal", "refresh", "secret", "security", "session", "slack", "wandb",
)
# fmt: on
"""What stands before `token` where it opens something; a language model has many others, such as pad_token."""
PLACES = {"dir", "directory", "env", "file", "name", "path"}
"""Last words of keys that say where a secret is, and not what it is."""
# fmt: off
VISIBLE = {
    "name", "version", "batch", "run", "loader", "clip", "eval", "log", "guard", "blocks", "activation_checkpointing",
    "compile", "sweep",
}
# fmt: on
"""The run's name, its recipe's version and the runner's own sections: numbers, choices, directories."""
PLACEHOLDER = re.compile(r"\$\\?\{runner\.secret\\?:\d+\\?\}")
"""What stands for a secret in an override; see composition/secrets.py. Hydra's sweeper puts backslashes into it."""
SHORTEST = 6
"""Characters of a value below which it is not looked for in text: it would be found where it is not meant."""


def names_a_secret(name: str) -> bool:
    """Whether the last part of a key says that its value is a secret."""
    words = [word.lower() for word in WORDS.findall(name)]
    if not words or words[-1] in PLACES:
        return False
    joined = f"_{'_'.join(words)}_"
    if any(f"_{one}_" in joined for one in SECRET_WORDS):
        return True
    return words == ["token"] or any(pair in joined for pair in (f"_{owner}_token_" for owner in TOKEN_OWNERS))


def is_visible(key: str) -> bool:
    """Whether a dotted key holds no secret, wherever its value came from. Targets name code, which is recorded."""
    return key.partition(".")[0] in VISIBLE or key.rpartition(".")[2] == TARGET


def marked(config: Mapping[str, Any], origin: Callable[[str], str]) -> dict[str, Any]:
    """The configuration with a Secret for each text and number whose key names one.

    Args:
        origin: from a dotted key to where its value came from; asked for secrets only.
    """

    def mark(value: Any, key: str, *, named: bool) -> Any:
        if isinstance(value, Mapping):
            inherits = named and TARGET not in value
            return {
                name: mark(inner, below(key, name), named=name != TARGET and (inherits or names_a_secret(str(name))))
                for name, inner in value.items()
            }
        if isinstance(value, list):
            return [mark(inner, below(key, index), named=named) for index, inner in enumerate(value)]
        if not named or not _hides_something(value) or is_visible(key):
            return value
        return Secret(value=value, source=origin(key) or "the recipe")

    marked: dict[str, Any] = mark(config, "", named=False)
    return marked


def _hides_something(value: Any) -> bool:
    if isinstance(value, str):
        return value not in ("", "???") and not _is_record(value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def hidden(node: Any) -> Any:
    """The form that is recorded: `*** from SOURCE` for each Secret."""
    if isinstance(node, Secret):
        return f"{MASK} from {node.source}"
    if isinstance(node, Mapping):
        return {name: hidden(inner) for name, inner in node.items()}
    return [hidden(inner) for inner in node] if isinstance(node, list | tuple) else node


def is_record_at(config: Any, key: str) -> bool:
    """Whether a record stands at a dotted key, in place of a secret."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return _is_record(config)


def _is_record(value: Any) -> bool:
    return isinstance(value, str) and RECORDED.fullmatch(value) is not None


def collected(node: Any, key: str = "") -> dict[str, Secret]:
    """Every Secret of a configuration, by its dotted key."""
    if isinstance(node, Secret):
        return {key: node}
    inner = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
    return {found: one for name, value in inner for found, one in collected(value, below(key, name)).items()}


def revealed(
    config: Mapping[str, Any], given: Mapping[str, Secret], *, keep: bool = False
) -> tuple[dict[str, Any], list[Fault]]:
    """The configuration with a Secret for each recorded one.

    Args:
        given: values that are known, by dotted key.
        keep: leave a value that is not known as it is recorded, without a fault.

    Returns:
        It, and a fault for each value that neither is given nor can be taken from the environment.
    """
    faults: list[Fault] = []

    def reveal(value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            return {name: reveal(inner, below(key, name)) for name, inner in value.items()}
        if isinstance(value, list):
            return [reveal(inner, below(key, index)) for index, inner in enumerate(value)]
        found = RECORDED.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            return value
        if key in given:
            return given[key]
        try:
            return Secret(value=_from_environment(found[1]), source=found[1])
        except LookupError as missing:
            if not keep:
                faults.append(Fault(key=key, message=f"{missing.args[0]} Give its value: {key}=VALUE"))
            return value

    return reveal(config, ""), faults


def _from_environment(source: str) -> Any:
    """Raises LookupError, with a sentence, if the value cannot be had from there."""
    if not is_reference(source):
        raise LookupError(f"the value, from {source}, is a secret, which no record of a run holds.")
    from omegaconf import OmegaConf  # only such a value needs it
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.create({"value": source}), resolve=True)["value"]  # type: ignore[index, call-overload]
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise LookupError(f"{source} cannot be taken from the environment here: {reason}. Set the variable.") from None


def scrubber(secrets: Collection[Secret]) -> Callable[[str], str]:
    """A function that replaces every secret of SHORTEST characters or more in a text, and each of its lines."""
    texts = {line for secret in secrets for line in _texts(secret) if len(line) >= SHORTEST}
    if not texts:
        return str
    pattern = re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)))
    return lambda text: pattern.sub(MASK, text)


def scrub_error(error: BaseException | None, scrub: Callable[[str], str]) -> None:
    """Take secrets out of an error's message, and of those that it follows from, in place: others will print it."""
    while error is not None:
        error.args = tuple(scrub(one) if isinstance(one, str) else one for one in error.args)
        if isinstance(error, OSError) and isinstance(error.filename, str):
            error.filename = scrub(error.filename)
        error = error.__cause__ or error.__context__


def _texts(secret: Secret) -> Iterator[str]:
    """A value as it may stand in text: whole, escaped, line by line, and what the environment put into a longer one."""
    whole = str(secret.value)
    yield whole
    yield repr(whole)[1:-1]
    yield from whole.splitlines()
    around = "(.+)".join(map(re.escape, INTERPOLATION.split(secret.source)))
    found = re.fullmatch(around, whole, re.DOTALL) if is_reference(secret.source) else None
    yield from found.groups() if found else ()


def shown_override(text: str) -> str:
    """An override as it is recorded."""
    return PLACEHOLDER.sub(MASK, text)


def shown_yaml(text: str, secrets: Mapping[str, Secret]) -> str:
    """Printed YAML without the values of secrets, short ones included where they stand after their own key."""
    for key, secret in secrets.items():
        name, value = re.escape(key.rpartition(".")[2]), re.escape(str(secret.value))
        text = re.sub(rf"(?m)^(\s*(?:- )?{name}: )(['\"]?){value}\2$", rf"\1'{MASK}'", text)
    text = re.sub(rf"(?m): {PLACEHOLDER.pattern}$", f": '{MASK}'", text)
    return shown_override(scrubber(secrets.values())(text))


def shown_command(words: Iterable[str]) -> list[str]:
    """The words of a command line without the values of keys that name a secret."""
    return [_shown_word(word) for word in words]


def _shown_word(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals or is_reference(value):
        return word
    return f"{key}={MASK}" if secrets_inside(value) or key_names_a_secret(key) else word


def secrets_inside(value: str) -> list[str]:
    """The keys of mappings inside an override's value that name a secret."""
    return [name for name in re.findall(r"[\w.-]+(?=\s*:)", value) if names_a_secret(name)]


def key_names_a_secret(key: str) -> bool:
    """Whether any part of an override's key, which may have Hydra's prefixes and package, names a secret."""
    return any(map(names_a_secret, key.lstrip("+~").partition("@")[0].split(".")))


def below(key: str, name: object) -> str:
    """The dotted key of a value inside the one at `key`; "" = the whole configuration."""
    return f"{key}.{name}" if key else str(name)
