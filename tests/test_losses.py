"""A model's own mean becomes a total and its count, so that a step over uneven micro-batches is one large batch."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner import Loss
from runner.errors import HookError
from runner.losses import own_causal_loss, own_loss, own_token_loss


class Model(nn.Module):
    """Returns a mean as transformers' models do: over labels, shifted or not; as an attribute or a mapping's value."""

    def __init__(self, *, shift: bool = False, output: type = dict) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scores = nn.Embedding(8, 8)
        self.shift = shift
        self.output = output

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> object:
        logits = self.scores(input_ids)
        if labels is None:
            return self.output(logits=logits)
        if self.shift:
            logits, labels = logits[:, :-1], labels[:, 1:]
        return self.output(loss=F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100))


def batch(*labels: list[int]) -> dict[str, Tensor]:
    targets = torch.tensor(labels)
    return {"input_ids": targets.clamp(min=0), "labels": targets}


UNEVEN = ([1, 2, 3, 4], [5, 6, -100, -100], [7, -100, -100, -100])


@pytest.mark.parametrize("output", [dict, SimpleNamespace])
def test_a_mean_over_items_is_passed_on(output: type) -> None:
    model = Model(output=output)
    loss = own_loss(model, batch([1, 2], [3, 4]))
    assert loss.shape == ()
    assert torch.equal(loss, F.cross_entropy(model.scores.weight[1:5], torch.tensor([1, 2, 3, 4])))


@pytest.mark.parametrize(
    ("hook", "shift", "counts"), [(own_token_loss, False, (4, 2, 1)), (own_causal_loss, True, (3, 1, 0))]
)
def test_uneven_micro_batches_give_the_gradient_of_one_large_batch(
    hook: Any, shift: bool, counts: tuple[int, ...]
) -> None:
    model = Model(shift=shift)
    whole = model(**batch(*UNEVEN))["loss"]
    (expected,) = torch.autograd.grad(whole, model.scores.weight)
    parts = [hook(model, batch(row)) for row in UNEVEN]
    assert all(isinstance(part, Loss) for part in parts)
    assert [int(part.count) for part in parts] == list(counts)
    total, count = sum(part.total for part in parts), sum(part.count for part in parts)
    torch.testing.assert_close(total / count, whole)
    (found,) = torch.autograd.grad(total, model.scores.weight)
    torch.testing.assert_close(found / count, expected)


def test_a_micro_batch_in_which_nothing_counts_adds_nothing() -> None:
    """Its mean is 0 / 0. The gradient must be 0 and not nan."""
    model = Model(shift=True)
    loss = own_causal_loss(model, batch([7, -100], [-100, -100]))
    assert (loss.total.item(), int(loss.count)) == (0.0, 0)
    loss.total.backward()
    assert torch.equal(model.scores.weight.grad, torch.zeros(8, 8))


def test_another_number_may_mark_what_is_ignored() -> None:
    labels = {"input_ids": torch.tensor([[1, 2, 0]]), "labels": torch.tensor([[1, 2, 0]])}
    assert int(own_token_loss(Model(), labels, ignored=0).count) == 2
    assert int(own_causal_loss(Model(shift=True), labels, ignored=0).count) == 1


@pytest.mark.parametrize("output", [dict, SimpleNamespace])
def test_a_model_that_returns_no_loss_is_told(output: type) -> None:
    with pytest.raises(HookError) as caught:
        own_loss(Model(output=output), {"input_ids": torch.tensor([1])})
    assert str(caught.value) == (
        f"Model returned a {output.__name__} without a loss for a batch of input_ids. Add what it computes its loss "
        "from (transformers: labels), or write a loss hook."
    )


@pytest.mark.parametrize("hook", [own_token_loss, own_causal_loss])
def test_a_batch_without_labels_is_told(hook: Any) -> None:
    with pytest.raises(
        HookError, match=r"the batch \(input_ids\) has no tensor 'labels', which gives the count of the loss"
    ):
        hook(Model(), {"input_ids": torch.tensor([1])})
    with pytest.raises(HookError, match=r"the batch \(a list\) has no tensor 'labels'"):
        hook(Model(), [torch.tensor([1])])


def test_a_batch_that_is_no_mapping_is_told() -> None:
    with pytest.raises(HookError, match=r"the batch is a tuple, but a model .* is called as model\(\*\*batch\)"):
        own_loss(Model(), (torch.tensor([1]),))


def test_importing_runner_does_not_import_them() -> None:
    code = "import runner, sys; assert not {'torch', 'runner.losses'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
