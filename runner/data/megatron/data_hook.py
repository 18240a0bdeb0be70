"""A data hook: samples packed from tokens in Megatron's files."""

from collections.abc import Mapping
from typing import Any

from runner.data.megatron.indexed_tokens import PARTS, IndexedTokens, shares
from runner.data.megatron.packed_tokens import PackedTokens
from runner.data.mixture import Mixture
from runner.errors import DataError
from runner.protocols import Data

__all__ = ["build_data"]

WHOLE = "all"
"""The name of the only files, where no names are given."""


def build_data(
    *,
    path: str | Mapping[str, str],
    sequence_length: int,
    seed: int,
    split: str = "969,30,1",
    weights: Mapping[str, float] | None = None,
    evaluate: str = "valid",
) -> Data:
    """Train on samples of `sequence_length` + 1 tokens, packed from the documents of one or several pairs of files.

    Items are tensors of int64: a batch is [rows, sequence_length + 1], of which the loss hook makes inputs and targets.

    Args:
        path: the prefix of PREFIX.bin and PREFIX.idx; or prefixes by name, which become a mixture.
        seed: of the order in which documents are packed: ${run.seed}, usually.
        split: shares of the documents for train, valid and test. Without a share there is no such part.
        weights: of a mixture, by name; None = by the number of samples.
        evaluate: valid | test. The evaluation sets have the names of a mixture.

    Raises:
        DataError: files cannot be read or have too few tokens, or the weights or the split are none.
    """
    if evaluate not in PARTS[1:]:
        raise DataError(f"evaluate={evaluate!r} must be one of {', '.join(PARTS[1:])}.")

    def packed(part: str) -> dict[str, Any]:
        paths = {WHOLE: path} if isinstance(path, str) else path
        documents = {name: IndexedTokens(one, split=split, part=part) for name, one in paths.items()}
        return {name: PackedTokens(one, sequence_length=sequence_length, seed=seed) for name, one in documents.items()}

    train, evaluation = packed("train"), packed(evaluate) if shares(split)[evaluate] else None
    if isinstance(path, str):
        return Data(train=train[WHOLE], eval=evaluation and evaluation[WHOLE])
    return Data(train=Mixture(train, weights), eval=evaluation)
