"""Batches sent by a worker arrive as they were, and their memory is used again only when they are gone."""

import pickle
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy
import pytest
import torch

from runner.data.transfer import INLINE_BYTES, Sender
from tests.data.batches import assert_same

LARGE = INLINE_BYTES // 4 + 1
"""float32 numbers that are too many for one message."""


@dataclass
class Batch:
    text: list[str]
    tensors: dict[str, torch.Tensor]


def sent(sender: Sender, batch: Any) -> Any:
    """What a rank gets."""
    return pickle.loads(ForkingPickler.dumps(sender(batch)))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch, of every sparse tensor that it unpickles
@pytest.mark.parametrize("size", [3, LARGE])
def test_a_batch_arrives_as_it_was(size: int) -> None:
    row = torch.arange(size, dtype=torch.float32)
    tensors = {
        "row": row,
        "number": torch.tensor(3),
        "none": torch.empty(0, 4),
        "flags": row > 1,
        "bf16": row.to(torch.bfloat16),
        "complex": torch.complex(row, -row),
        "conjugate": torch.complex(row, -row).conj(),
        "turned": torch.stack([row, -row, row]).reshape(3, 1, -1).permute(2, 0, 1),
        "every_other": row[::2],
        "repeated": torch.tensor(1.5).expand(3),
        "weights": torch.ones(2, requires_grad=True),
        "sparse": torch.eye(2).to_sparse(),
    }
    batch = Batch(["a", "ü"], tensors)
    got = sent(Sender(), batch)
    assert type(got) is Batch
    assert got.text == batch.text
    assert [*got.tensors] == [*tensors]
    for name, tensor in tensors.items():
        other = got.tensors[name]
        assert (other.dtype, other.layout, other.requires_grad) == (tensor.dtype, tensor.layout, tensor.requires_grad)
        assert torch.equal(other.to_dense(), tensor.to_dense())
    assert got.tensors["turned"].stride() == tensors["turned"].stride()
    got.tensors["row"] += 1  # a batch may be changed in place
    assert torch.equal(got.tensors["row"], row + 1)


@pytest.mark.parametrize("size", [3, LARGE])
def test_arrays_arrive_and_what_is_there_twice_is_one(size: int) -> None:
    row, array = torch.arange(size), numpy.arange(size).reshape(1, -1)
    got_row, again, got_array, text = sent(Sender(), [row, row, array, "text"])
    assert got_row is again
    assert text == "text"
    assert_same(got_row, row)
    assert got_array.dtype == array.dtype
    assert (got_array == array).all()
    got_array += 1


def test_memory_is_used_again_when_the_last_tensor_in_it_is_gone() -> None:
    sender = Sender()

    def batch(number: int) -> list[torch.Tensor]:
        return [torch.full((LARGE,), float(number)), torch.tensor(number)]

    kept = sent(sender, batch(0))
    for number in range(1, 6):
        passing = sent(sender, batch(number))
        assert passing[1] == number
        assert (passing[0] == number).all()
        del passing
    assert len(sender._shared) == 2, "one in use, one that is used again"
    part = kept.pop(0)[7:9]
    kept.clear()
    assert (sent(sender, batch(7))[0] == 7).all()
    assert part.tolist() == [0, 0]
    del part
    both = sent(sender, batch(9)), sent(sender, batch(10))
    assert [int(one[1]) for one in both] == [9, 10]
    assert len(sender._shared) == 2


def test_memory_that_is_too_small_is_replaced() -> None:
    sender = Sender()
    for size in (LARGE, 2 * LARGE, LARGE, 3 * LARGE):
        assert (sent(sender, torch.ones(size)) == 1).all()
    assert [len(memory) // (4 * LARGE) for memory in sender._shared] == [3]


def test_what_cannot_be_sent_is_told_where_it_is_sent() -> None:
    with pytest.raises((AttributeError, pickle.PicklingError), match=r"pickle"):
        Sender()([lambda: None])
