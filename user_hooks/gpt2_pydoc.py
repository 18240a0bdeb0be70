"""The bytes of the help topics of Python's standard library, batched for transformers' language models."""

from pydoc_data.topics import topics

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from runner import Data

BOUNDARY = 0  # a byte that occurs in no document: marks the start and end of each one, and pads short windows
IGNORED = -100  # the label that transformers' losses ignore


def build_data(*, context: int) -> Data:
    """Return windows of up to `context` bytes; every tenth document, in the order of their names, is held out."""
    documents = list(dict.fromkeys(topics[name] for name in sorted(topics)))  # "if" and "else" share one
    held_out = documents[9::10]
    train = [document for document in documents if document not in held_out]
    return Data(train=windows(train, context), eval=windows(held_out, context), collate=collate)


def windows(documents: list[str], context: int) -> list[Tensor]:
    """Split each document into windows of `context` bytes, the last one shorter. A list is a map-style dataset.

    Each window starts with the last byte of the previous one, so that every byte of a document is predicted exactly
    once: a causal model predicts all bytes of its input except the first.
    """
    result = []
    for document in documents:
        text = torch.tensor([BOUNDARY, *document.encode(), BOUNDARY], dtype=torch.uint8)
        result += [text[start : start + context] for start in range(0, len(text) - 1, context - 1)]
    return result


def collate(windows: list[Tensor]) -> dict[str, Tensor]:
    """Pad windows to a batch of tensors [rows, longest]; padding is masked in attention and ignored in the loss."""
    lengths = torch.tensor([len(window) for window in windows])
    input_ids = pad_sequence(windows, batch_first=True, padding_value=BOUNDARY).long()
    attended = torch.arange(input_ids.shape[1]) < lengths[:, None]
    labels = input_ids.where(attended, IGNORED)
    return {"input_ids": input_ids, "attention_mask": attended.long(), "labels": labels}
