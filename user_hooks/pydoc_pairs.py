"""Pairs of sentences from the help topics of Python's standard library: does the second say what the first says?"""

import random
import re
from collections.abc import Sequence
from pydoc_data.topics import topics
from typing import NamedTuple
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from runner import Data, Loss

PADDING = 0  # no word has this number
SENTENCE_END = re.compile(r"(?<=[.!?:])\s+")
WORD = re.compile(r"\w+")


class Pair(NamedTuple):
    """Two sentences as numbers of their words, and whether they say the same."""

    first: Tensor  # [words]
    second: Tensor  # [words]
    label: int  # 1 = the same


def build_model(*, vocabulary: int, width: int) -> nn.Module:
    """Build a classifier of pairs; word numbers are below `vocabulary`."""
    return PairClassifier(vocabulary=vocabulary, width=width)


def build_data(*, vocabulary: int) -> Data:
    """Return pairs of sentences; every tenth document, in the order of their names, is held out.

    Documents share sentences: those that training sees are left out of the evaluation.
    """
    documents = list(dict.fromkeys(topics[name] for name in sorted(topics)))  # "if" and "else" share one
    held_out = documents[9::10]
    train = [split(document) for document in documents if document not in held_out]
    seen = {tuple(words) for sentences in train for words in sentences}
    unseen = [[words for words in split(document) if tuple(words) not in seen] for document in held_out]
    training = pairs(train, vocabulary)
    lengths = [len(pair.first) for pair in training]  # the second sentence has two thirds of them, or is another one
    return Data(train=training, eval=pairs(unseen, vocabulary), lengths=lengths, collate=pad)


def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Loss:
    """Return the summed cross-entropy of a batch of pairs; as metrics, accuracy and F1 of the pairs that are the same.

    F1 is twice the hits over what was found plus what there is: a ratio of sums, and so exact over any number of
    batches and ranks. The output of each pair is the probability that it is the same.
    """
    first, second, labels = batch
    logits = model(first, second)
    total = F.cross_entropy(logits, labels, reduction="sum")
    found = logits.argmax(dim=1)
    hits = (found * labels).sum()
    metrics = {
        "accuracy": ((found == labels).sum(), len(labels)),
        "f1": (2 * hits, found.sum() + labels.sum()),
    }
    outputs = {"preds": (logits[:, 1] - logits[:, 0]).sigmoid(), "target": labels}
    return Loss(total, len(labels), metrics, outputs)


def pairs(documents: Sequence[list[list[str]]], vocabulary: int) -> list[Pair]:
    """Pair each sentence with one of its document, reworded: two of three times with itself. Always the same pairs."""
    draw = random.Random(0)
    result = []
    for sentences in documents:
        for number, sentence in enumerate(sentences):
            others = sentences[:number] + sentences[number + 1 :]
            label = int(not others or draw.random() < 2 / 3)
            second = reworded(sentence if label else draw.choice(others), draw)
            result.append(Pair(numbered(sentence, vocabulary), numbered(second, vocabulary), label))
    return result


def split(document: str) -> list[list[str]]:
    """The words of each sentence of 6 to 40 words, each sentence once."""
    sentences = (tuple(WORD.findall(text.lower())) for text in SENTENCE_END.split(document))
    return [list(words) for words in dict.fromkeys(sentences) if 6 <= len(words) <= 40]


def reworded(words: list[str], draw: random.Random) -> list[str]:
    """Leave out a third of the words, and put the others into another order."""
    return draw.sample(words, k=len(words) - len(words) // 3)


def numbered(words: list[str], vocabulary: int) -> Tensor:
    """Number each word by its checksum, from 1; rare words may share a number."""
    return torch.tensor([1 + crc32(word.encode()) % (vocabulary - 1) for word in words])


def pad(batch: list[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad the first sentences to the longest of the batch, and the second ones to theirs."""
    first, second, labels = zip(*batch, strict=True)
    return (
        pad_sequence(first, batch_first=True, padding_value=PADDING),
        pad_sequence(second, batch_first=True, padding_value=PADDING),
        torch.tensor(labels),
    )


class PairClassifier(nn.Module):
    """Encodes both sentences alike, and compares what comes out: Conneau et al. (EMNLP 2017)."""

    def __init__(self, *, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        self.encoder = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 2))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Map sentences [n, words] and [n, words] to logits [n, 2]: different, the same."""
        a, b = self.encode(first), self.encode(second)
        return self.head(torch.cat([(a - b).abs(), a * b], dim=1))

    def encode(self, words: Tensor) -> Tensor:
        """Map a sentence [n, words] to the mean [n, width] over its words; padding does not count."""
        is_word = (words != PADDING).unsqueeze(-1)
        encoded = self.encoder(self.embedding(words)) * is_word
        return encoded.sum(dim=1) / is_word.sum(dim=1)
