"""Mixtures of experts in one process: each token's own experts, none dropped; auxiliary losses that are sums."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from runner.model.experts import Experts, MixtureOfExperts, balance_loss, grouped_linear, router_z_loss
from runner.model.recompute import recompute


def by_hand(mixture: Any, x: Any) -> Any:
    """Every token through every expert, one at a time, and the weight of those that it does not go to is 0."""
    logits = mixture.router(x)
    limit = logits.sort(dim=-1, descending=True).values[..., mixture.top_k - 1 : mixture.top_k]
    weights = logits.softmax(dim=-1).masked_fill(logits < limit, 0)
    if mixture.renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    output = torch.zeros_like(x)
    for expert, (gate_up, down) in enumerate(zip(mixture.experts.gate_up, mixture.experts.down, strict=True)):
        gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
        output = output + weights[..., expert, None] * F.linear(F.silu(gate) * up, down)
    return output


@pytest.mark.parametrize(("top_k", "renormalize"), [(1, False), (2, True), (2, False), (5, True)])
@pytest.mark.parametrize("hidden", [8, 6])  # 6 × 4 bytes are no multiple of 16, which torch's grouped product asks for
def test_a_mixture_and_its_gradients_are_those_of_a_dense_loop(top_k: Any, renormalize: Any, hidden: Any) -> None:
    torch.manual_seed(0)
    mixture = MixtureOfExperts(width=4, hidden=hidden, num_experts=5, top_k=top_k, renormalize=renormalize)
    x = torch.randn(3, 7, 4, requires_grad=True)
    found, expected = mixture(x).output, by_hand(mixture, x)
    assert_close(found, expected)
    inputs = [x, *mixture.parameters()]
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_no_token_is_dropped_when_all_choose_the_same_expert() -> None:
    mixture = MixtureOfExperts(width=4, hidden=4, num_experts=3, top_k=1, renormalize=False)
    x = torch.rand(100, 4)
    with torch.no_grad():
        mixture.router.weight.copy_(torch.tensor([[0.0], [0.0], [1.0]]).expand(3, 4))
    assert_close(mixture(x).output, by_hand(mixture, x))
    assert mixture(x).output.any(dim=1).all()


@pytest.mark.parametrize("rows", [0, 2])
def test_an_expert_without_tokens_gets_a_gradient_of_zeros(rows: Any) -> None:
    weights = torch.ones(2, 4, 4, requires_grad=True)
    output = grouped_linear(torch.ones(rows, 4), weights, torch.tensor([rows, 0]))
    (gradient,) = torch.autograd.grad(output.square().sum(), weights)
    assert output.shape == (rows, 4)
    assert gradient[0].any() == bool(rows)
    assert not gradient[1].any()


def test_under_autocast_experts_compute_in_its_dtype_as_linear_layers_do() -> None:
    mixture = MixtureOfExperts(width=4, hidden=4, num_experts=3, top_k=2)
    with torch.autocast("cpu", torch.bfloat16):
        output, router_logits = mixture(torch.randn(5, 4))
    assert (output.dtype, router_logits.dtype) == (torch.bfloat16, torch.bfloat16)


def test_the_weights_of_each_expert_begin_as_those_of_a_linear_layer() -> None:
    experts = Experts(width=400, hidden=300, num_experts=3)
    for weight in experts.parameters():
        bound = nn.Linear(weight.shape[2], 1).in_features ** -0.5
        assert 0.99 * bound < weight.abs().amax(dim=(1, 2)).min() <= weight.abs().max() <= bound


def test_more_choices_than_experts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^top_k=3 must be between 1 and num_experts=2\.$"):
        MixtureOfExperts(width=4, hidden=4, num_experts=2, top_k=3)


def test_a_router_without_a_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^top_k=1 does not go with .* Use renormalize=False, or top_k=2\.$"):
        MixtureOfExperts(width=4, hidden=4, num_experts=2, top_k=1)


class Products(TorchDispatchMode):
    """Counts grouped matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._grouped_mm.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("selective", "in_backward"), [(True, 4), (False, 6)])
def test_selective_recomputation_does_not_repeat_the_products_of_experts(selective: bool, in_backward: int) -> None:
    mixture = MixtureOfExperts(width=8, hidden=8, num_experts=4, top_k=2)
    recompute([mixture], selective=selective)
    total = mixture(torch.randn(5, 8, requires_grad=True)).output.square().sum()
    with Products() as products:
        total.backward()
    assert products.count == in_backward  # each of two has two of its own, for its rows and for its weights


# ── Auxiliary losses ────────────────────────────────────────────────────────────────────────────────────────────────

ALL = torch.ones(1, 4, dtype=torch.bool)


def test_the_balancing_loss_of_a_sequence_is_its_tokens_if_balanced_and_more_if_not() -> None:
    sure = 100 * torch.eye(4)[None]  # each of four tokens is certain of another of four experts
    assert_close(balance_loss(sure, ALL, top_k=1), torch.tensor(4.0))
    same = 100 * torch.eye(4)[:1].expand(4, 4)[None]  # all four of the same: T · E · 1 · 1
    assert_close(balance_loss(same, ALL, top_k=1), torch.tensor(16.0))


def test_auxiliary_losses_are_sums_over_sequences_that_leave_padding_out() -> None:
    logits = torch.randn(3, 4, 5)
    counted = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    for loss in (lambda *args: balance_loss(*args, top_k=2), router_z_loss):
        each = [loss(logits[row : row + 1], counted[row : row + 1]) for row in range(3)]
        assert_close(loss(logits, counted), torch.stack(each).sum())
        assert_close(loss(logits[1:2, :2], counted[1:2, :2]), each[1])
        assert each[2] == 0


def test_the_z_loss_is_the_squared_logsumexp() -> None:
    assert_close(router_z_loss(torch.zeros(1, 4, 5), ALL), torch.tensor(4 * math.log(5) ** 2))
