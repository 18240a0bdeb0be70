"""What makes tokens of texts: bytes, or a tokenizer of transformers."""

from collections.abc import Iterable
from typing import Any, Protocol, final

import numpy

from runner.errors import Fault, SpecError

__all__ = ["BYTES", "Tokenizer", "tokenizer_named"]

BYTES = "bytes"
INSTALL = "pip install 'hydra-runner[transformers]'"
Tokens = numpy.ndarray[Any, numpy.dtype[Any]]


class Tokenizer(Protocol):
    """Makes tokens of texts."""

    @property
    def largest(self) -> int:
        """The largest token that it makes."""
        ...

    @property
    def end(self) -> int | None:
        """The token that ends a document, where it has one."""
        ...

    def tokens(self, texts: list[str]) -> Iterable[Tokens]:
        """The tokens of each text, without any that mark its beginning or end."""
        ...


@final
class Bytes:
    """The bytes of UTF-8. A document ends with 0, a byte that text does not have."""

    largest = 255
    end = 0

    def tokens(self, texts: list[str]) -> Iterable[Tokens]:
        """Bytes."""
        return [numpy.frombuffer(text.encode(), dtype=numpy.uint8) for text in texts]


@final
class Pretrained:
    """A tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.largest: int = max(tokenizer.get_vocab().values())
        self.end: int | None = tokenizer.eos_token_id

    def tokens(self, texts: list[str]) -> Iterable[Tokens]:
        """Those of all texts at once, which a fast tokenizer divides among the cores."""
        found = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [numpy.asarray(ids, dtype=numpy.int64) for ids in found]


def tokenizer_named(name: str) -> Tokenizer:
    """The tokenizer of a name: bytes, or the directory or name of one that transformers loads.

    Raises:
        SpecError: transformers is not installed, or has no such tokenizer.
    """
    if name == BYTES:
        return Bytes()
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError:
        rule = f"{name} is loaded by transformers, which is not installed: {INSTALL}. Or use {BYTES}."
        raise SpecError(Fault(key="--tokenizer", message=rule)) from None
    try:
        return Pretrained(AutoTokenizer.from_pretrained(name, trust_remote_code=False))
    except (OSError, ValueError) as error:
        rule = f"transformers cannot load {name}: {error}"
        raise SpecError(Fault(key="--tokenizer", message=rule)) from None
