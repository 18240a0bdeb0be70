"""The demo recipes' hooks by themselves: what users copy must be right in shape, split, mask and count."""

import math
import random
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from runner.errors import DataError
from runner.world.hook_ranks import HookRanks
from runner.world.solo import SoloWorld
from user_hooks import clip_digits, digits, moe_pydoc, pydoc_lm, pydoc_pairs


class Constant(nn.Module):
    """A model that says the same, whatever it is asked."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits


# ── digits ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_digits_are_images_from_0_to_1_and_their_labels() -> None:
    data = digits.build_data()
    assert data.collate is not None
    images, labels = data.collate(data.train.__getitems__([3, 1]))
    assert (images.shape, images.dtype) == ((2, 1, 8, 8), torch.float32)
    assert (labels.shape, labels.dtype) == ((2,), torch.int64)
    assert (data.train.images.min(), data.train.images.max()) == (0, 1)
    assert_close(images[1], data.train[1][0], rtol=0, atol=0)


def test_a_fifth_of_the_digits_is_held_out_and_never_trained_on() -> None:
    data = digits.build_data()
    assert (len(data.train), len(data.eval)) == (1438, 359)  # 1,797 in all
    train, test = ({tuple(image.flatten().tolist()) for image in part.images} for part in (data.train, data.eval))
    assert train.isdisjoint(test)
    assert len(train) + len(test) == 1797


def test_the_split_of_the_digits_does_not_depend_on_the_seed() -> None:
    torch.manual_seed(1)
    one = digits.build_data()
    torch.manual_seed(2)
    other = digits.build_data()
    assert_close(one.eval.images, other.eval.images, rtol=0, atol=0)
    assert_close(one.train.labels, other.train.labels, rtol=0, atol=0)


def test_without_scikit_learn_the_digits_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'hydra-runner\[demo\]'"):
        digits.build_data()


def test_the_loss_of_digits_sums_over_images_and_counts_the_recognised() -> None:
    sure_of_3 = torch.zeros(2, 10)
    sure_of_3[:, 3] = math.log(9)  # so p(3) = 9 / 18 and every other digit has 1 / 18
    total, count, metrics, _ = digits.compute_loss(Constant(sure_of_3), (torch.zeros(2, 1, 8, 8), torch.tensor([3, 7])))
    assert_close(total, torch.tensor(math.log(2) + math.log(18)))
    assert count == 2
    assert {name: tuple(map(int, pair)) for name, pair in metrics.items()} == {"accuracy": (1, 2)}


def test_what_the_digit_net_says_of_an_image_does_not_depend_on_its_batch() -> None:
    model = digits.build_model(width=8)
    images = torch.rand(3, 1, 8, 8)
    assert model(images).shape == (3, 10)
    assert_close(model(images)[:1], model(images[:1]))


# ── clip_digits ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_halves_are_encoded_apart_as_directions() -> None:
    model = clip_digits.build_model(width=8, features=4)
    images = torch.rand(3, 1, 8, 8)
    other = images.clone()
    other[:, :, 4:] = 0  # without the lower halves
    (upper, lower), (same, changed) = model(images), model(other)
    assert_close(torch.stack([upper.norm(dim=1), lower.norm(dim=1)]), torch.ones(2, 3))
    assert_close(upper, same, rtol=0, atol=0)
    assert not torch.equal(lower, changed)


def test_the_loss_of_halves_is_that_of_finding_each_among_all() -> None:
    ranks = HookRanks(SoloWorld(torch.device("cpu"))).all
    same = torch.eye(2)  # each half is its partner's equal, and has nothing of the other
    total, count, metrics, _ = clip_digits.compute_loss(
        Halved(same), (torch.zeros(2, 1, 8, 8), torch.zeros(2)), ranks, temperature=1 / math.log(9)
    )
    assert_close(total, torch.tensor(2 * -math.log(9 / 10)))  # e^(1 / temperature) = 9 beside e^0 = 1
    assert count == 2
    assert tuple(map(int, metrics["accuracy"])) == (2, 2)


class Halved(Constant):
    """A model of halves that says the same of both."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.logits, self.logits


# ── moe_pydoc ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_loss_of_mixtures_adds_that_of_their_routers_for_each_byte() -> None:
    model = moe_pydoc.build_model(width=8, depth=2, heads=2, hidden=4, experts=4, top_k=2).eval()
    batch = pydoc_lm.pad(pydoc_lm.windows(["abcdefg"], context=5))  # windows of 5 and 2 bytes
    losses = {
        weights: moe_pydoc.compute_loss(model, batch, top_k=2, balance=weights[0], router_z=weights[1])
        for weights in ((0, 0), (1, 0), (0, 1))
    }
    plain, balanced, z = losses.values()
    assert plain.count == 7
    sum_of_balances = plain.metrics["balance"][0] * 2  # of two blocks
    assert_close(balanced.total - plain.total, sum_of_balances)
    assert 2 * 7 * 0.9 < sum_of_balances < 2 * 7 * 4
    assert z.total > plain.total
    assert_close(torch.as_tensor(plain.outputs["bits"]).sum(), plain.metrics["bits_per_byte"][0])
    alone = moe_pydoc.compute_loss(model, batch[1:, :3], top_k=2, balance=1, router_z=1).total
    both = moe_pydoc.compute_loss(model, batch, top_k=2, balance=1, router_z=1).total
    first = moe_pydoc.compute_loss(model, batch[:1], top_k=2, balance=1, router_z=1).total
    assert_close(both, first + alone)


# ── pydoc_lm ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_windows_predict_every_byte_once_and_do_not_cross_documents() -> None:
    cut = [bytes(window.tolist()) for window in pydoc_lm.windows(["abcdefgh", "xy"], context=3)]
    assert cut == [b"\0abc", b"cdef", b"fgh", b"\0xy"]


def test_a_window_is_not_begun_where_a_document_just_ended() -> None:
    cut = [bytes(window.tolist()) for window in pydoc_lm.windows(["abcdef"], context=3)]
    assert cut == [b"\0abc", b"cdef"]


def test_every_tenth_document_is_held_out_and_none_stands_on_both_sides() -> None:
    data = pydoc_lm.build_data(context=1_000_000)  # a window a document
    train, held_out = ({bytes(window.tolist()) for window in part} for part in (data.train, data.eval))
    assert len(held_out) == (len(train) + len(held_out)) // 10
    assert len(train) == len(data.train)  # none is there twice
    assert train.isdisjoint(held_out)


def test_the_documents_hold_no_byte_that_means_padding() -> None:
    data = pydoc_lm.build_data(context=128)
    assert all((window[1:] != pydoc_lm.BOUNDARY).all() for window in data.train + data.eval)


def test_windows_of_unequal_length_are_padded_behind() -> None:
    batch = pydoc_lm.pad(pydoc_lm.windows(["abc", "x"], context=3))
    assert batch.dtype == torch.int64
    assert batch.tolist() == [[0, ord("a"), ord("b"), ord("c")], [0, ord("x"), 0, 0]]


def test_the_loss_of_bytes_counts_real_ones_only() -> None:
    batch = pydoc_lm.pad(pydoc_lm.windows(["abc", "x"], context=3))
    total, count, metrics, _ = pydoc_lm.compute_loss(Constant(torch.zeros(2, 3, 256)), batch)
    assert count == 4
    assert_close(total, torch.tensor(4 * math.log(256)))  # a uniform guess: 8 bits for each of 4 bytes
    bits, predicted = metrics["bits_per_byte"]
    assert_close(bits, torch.tensor(32.0))
    assert predicted == 4


def test_padding_changes_neither_total_nor_gradient() -> None:
    model = pydoc_lm.build_model(width=16, depth=2, heads=2)
    windows = pydoc_lm.windows(["a long document", "short"], context=15)
    together = pydoc_lm.compute_loss(model, pydoc_lm.pad(windows)).total
    apart = sum(pydoc_lm.compute_loss(model, pydoc_lm.pad([window])).total for window in windows)
    assert_close(together, apart)
    for one, other in zip(*(torch.autograd.grad(t, list(model.parameters())) for t in (together, apart)), strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-5)  # float32 sums in another order


def test_no_byte_is_predicted_from_those_after_it() -> None:
    model = pydoc_lm.build_model(width=16, depth=2, heads=2)
    text = torch.randint(1, 256, (1, 12))
    changed = text.clone()
    changed[:, 8:] = 65
    assert model(text).shape == (1, 12, 256)
    assert_close(model(text)[:, :8], model(changed)[:, :8])


def test_rotation_keeps_lengths_and_makes_products_depend_on_distance_alone() -> None:
    query, key = torch.randn(2, 8).unbind()
    rows = pydoc_lm.rotate(query.expand(6, 8)) @ pydoc_lm.rotate(key.expand(6, 8)).T
    assert_close(rows[0, 1], rows[4, 5])
    assert_close(rows[5, 2], rows[3, 0])
    assert_close(pydoc_lm.rotate(query.expand(6, 8)).norm(dim=-1), query.norm().expand(6))


@pytest.mark.parametrize("autocast", [False, True])
def test_the_gpt_computes_in_bfloat16(autocast: bool) -> None:
    model = pydoc_lm.build_model(width=16, depth=1, heads=2)
    model = model if autocast else model.bfloat16()  # as precision=bf16 does, and as sharding strategies do
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert model(torch.ones(2, 5, dtype=torch.int64)).dtype == torch.bfloat16


# ── pydoc_pairs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pairs_are_the_same_in_every_run_and_no_sentence_stands_on_both_sides() -> None:
    random.seed(1)
    one, other = pydoc_pairs.build_data(vocabulary=8192), pydoc_pairs.build_data(vocabulary=8192)
    assert [pair.second.tolist() for pair in one.eval] == [pair.second.tolist() for pair in other.eval]
    train, held_out = ({tuple(pair.first.tolist()) for pair in part} for part in (one.train, one.eval))
    assert train.isdisjoint(held_out)
    same = sum(pair.label for pair in one.train) / len(one.train)
    assert same == pytest.approx(2 / 3, abs=0.02)


def test_a_pair_is_the_same_if_and_only_if_its_words_are() -> None:
    text = "One two three four five six. Seven eight nine ten eleven twelve. Too short."
    assert [words[0] for words in pydoc_pairs.split(text)] == ["one", "seven"]
    for pair in pydoc_pairs.pairs([pydoc_pairs.split(text)] * 20, vocabulary=8192):
        first, second = set(pair.first.tolist()), set(pair.second.tolist())
        assert len(second) == 4  # of six words, a third is left out
        assert second <= first if pair.label else second.isdisjoint(first)
        assert pydoc_pairs.PADDING not in first | second


def test_each_batch_of_pairs_is_padded_to_its_own_longest() -> None:
    long, short = torch.arange(1, 5), torch.arange(1, 3)
    batch = [pydoc_pairs.Pair(long, short, 1), pydoc_pairs.Pair(short, short, 0)]
    first, second, labels = pydoc_pairs.pad(batch)
    assert first.tolist() == [[1, 2, 3, 4], [1, 2, 0, 0]]
    assert second.tolist() == [[1, 2], [1, 2]]
    assert labels.tolist() == [1, 0]


def test_padding_does_not_change_what_is_said_of_a_pair() -> None:
    model = pydoc_pairs.build_model(vocabulary=50, width=8)
    pair, other = (pydoc_pairs.Pair(torch.arange(1, n), torch.arange(2, n), 1) for n in (5, 12))
    alone = model(*pydoc_pairs.pad([pair])[:2])
    assert_close(model(*pydoc_pairs.pad([pair, other])[:2])[:1], alone)


def test_f1_of_uneven_batches_is_that_of_all_pairs() -> None:
    f1_score = pytest.importorskip("sklearn.metrics").f1_score
    torch.manual_seed(0)
    labels, logits = torch.randint(0, 2, (50,)), torch.randn(50, 2)
    sums = torch.zeros(2)
    for part in torch.arange(50).split([1, 20, 29]):
        loss = pydoc_pairs.compute_loss(Says(logits[part]), (part, part, labels[part]))
        sums += torch.stack([torch.as_tensor(value) for value in loss.metrics["f1"]])
    assert float(sums[0] / sums[1]) == pytest.approx(f1_score(labels, logits.argmax(dim=1)))


class Says(Constant):
    """A model of pairs that says the same, whatever it is asked."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:  # type: ignore[override]
        return self.logits
