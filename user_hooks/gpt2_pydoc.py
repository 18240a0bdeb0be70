"""The help topics of Python's own standard library as bytes, in batches as transformers' language models take them."""

from pydoc_data.topics import topics

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from runner import Data

EDGE = 0  # a byte that no text holds: it begins and ends each document, and fills short windows up
IGNORED = -100  # a label that transformers' losses do not count


def build_data(*, context: int) -> Data:
    """Windows of at most `context` bytes; of the documents in the order of their names, every tenth is held out."""
    documents = list(dict.fromkeys(topics[name] for name in sorted(topics)))  # "if" and "else" are one document
    held_out = documents[9::10]
    train = [document for document in documents if document not in held_out]
    return Data(train=windows(train, context), eval=windows(held_out, context), collate=collate)


def windows(documents: list[str], context: int) -> list[Tensor]:
    """Cut each document into windows of `context` bytes; its last is shorter. A list is a map-style dataset.

    The first byte of a window is the last of the one before it, so that every byte of a document is told exactly once:
    a causal model tells all bytes of its input but the first.
    """
    cut = []
    for document in documents:
        text = torch.tensor([EDGE, *document.encode(), EDGE], dtype=torch.uint8)
        cut += [text[start : start + context] for start in range(0, len(text) - 1, context - 1)]
    return cut


def collate(windows: list[Tensor]) -> dict[str, Tensor]:
    """Windows of unequal length as one batch, [rows, longest] each: what is padded is neither attended nor counted."""
    lengths = torch.tensor([len(window) for window in windows])
    input_ids = pad_sequence(windows, batch_first=True, padding_value=EDGE).long()
    attended = torch.arange(input_ids.shape[1]) < lengths[:, None]
    labels = input_ids.where(attended, IGNORED)
    return {"input_ids": input_ids, "attention_mask": attended.long(), "labels": labels}
