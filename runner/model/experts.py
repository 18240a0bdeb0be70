"""Mixture-of-experts blocks (Shazeer et al., ICLR 2017) to build a model from, and what their routers are trained by.

    self.mixture = MixtureOfExperts(width=96, hidden=128, num_experts=8, top_k=2)
    ...
    output, router_logits = self.mixture(x)

In one process, and under every strategy that keeps experts whole, this is a plain module. With `strategy=parallel` and
`strategy.expert` above 1, each rank holds a part of the experts and tokens are sent to where their experts are.
"""

from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALIGNMENT_BYTES = 16
"""What the rows of the weights must be a multiple of for torch's grouped matrix product."""
CAPABILITY = (8, 0)
"""The compute capability that it needs on CUDA."""


class Mixed(NamedTuple):
    """The result of a mixture."""

    output: Tensor
    """In the shape of the input."""
    router_logits: Tensor
    """[..., num_experts]: return them from the model, for `balance_loss` and `router_z_loss` in the loss hook."""


@final
class MixtureOfExperts(nn.Module):
    """A router and its experts. Each token goes to its `top_k` experts; none is dropped, however many one expert gets.

    The outputs of the chosen experts are weighted by their probabilities, which as in Mixtral (arXiv:2401.04088) are
    made to add up to 1, or as in the Switch Transformer (arXiv:2101.03961) left as they are among all experts.
    """

    def __init__(self, *, width: int, hidden: int, num_experts: int, top_k: int, renormalize: bool = True) -> None:
        """Create the weights.

        Args:
            width: features of a token.
            hidden: features between the two layers of an expert.
            num_experts: experts to choose from.
            top_k: how many of them each token goes to.
            renormalize: whether a token's probabilities of its experts are divided by their sum.

        Raises:
            ValueError: top_k is not between 1 and num_experts, or it is 1 and renormalized.
        """
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k={top_k} must be between 1 and num_experts={num_experts}.")
        if top_k == 1 and renormalize:
            rule = "a single weight is always 1 then, and the router gets no gradient"
            raise ValueError(f"top_k=1 does not go with renormalize=True: {rule}. Use renormalize=False, or top_k=2.")
        self.top_k = top_k
        self.renormalize = renormalize
        self.router = nn.Linear(width, num_experts, bias=False)
        self.experts = Experts(width=width, hidden=hidden, num_experts=num_experts)

    def forward(self, x: Tensor) -> Mixed:
        """Map [..., width] to the same shape."""
        logits = self.router(x)
        weights, chosen = logits.float().softmax(dim=-1).topk(self.top_k, dim=-1)
        if self.renormalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        output = self.experts(x.flatten(0, -2), chosen.flatten(0, -2), weights.flatten(0, -2))
        return Mixed(output.view_as(x), logits)


@final
class Experts(nn.Module):
    """Feed-forward networks with a gate (SwiGLU, arXiv:2002.05202) and without biases; their weights are stacked."""

    def __init__(self, *, width: int, hidden: int, num_experts: int) -> None:
        """Create the weights."""
        super().__init__()
        self.num_experts = num_experts
        self.gate_up = nn.Parameter(torch.empty(num_experts, 2 * hidden, width))
        self.down = nn.Parameter(torch.empty(num_experts, width, hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights of each expert as nn.Linear draws its own."""
        for weight in (self.gate_up, self.down):
            bound = weight.shape[-1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)

    # Group sizes depend on the data: a compiled block breaks its graph here rather than compile for each of them.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Send each token through its experts.

        Args:
            x: [tokens, width]
            chosen: [tokens, top_k], indices of experts.
            weights: [tokens, top_k], of the experts' outputs.

        Returns:
            [tokens, width], the weighted sum over a token's experts.
        """
        x, gate_up, down = _in_autocast(x, self.gate_up, self.down)
        groups = Groups(chosen, num_experts=self.num_experts)
        gate, up = grouped_linear(x[groups.tokens], gate_up, groups.counts).chunk(2, dim=-1)
        return groups.combine(grouped_linear(F.silu(gate) * up, down, groups.counts), weights)


@final
class Groups:
    """Tokens grouped by expert; a token stands in as many groups as it has experts."""

    def __init__(self, chosen: Tensor, *, num_experts: int) -> None:
        """Group tokens.

        Args:
            chosen: [tokens, top_k], indices of experts.
        """
        self.counts = torch.bincount(chosen.flatten(), minlength=num_experts)
        """[num_experts]: the size of each group."""
        self._order = chosen.flatten().argsort(stable=True)
        self.tokens = self._order // chosen.shape[1]
        """[tokens × top_k]: the tokens of the first expert, in their order, then those of the second, and so on."""

    def combine(self, rows: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum over each token's rows, in the order of the tokens.

        Args:
            rows: [tokens × top_k, width], grouped by expert.
            weights: [tokens, top_k]
        """
        place = torch.empty_like(self._order)
        place[self._order] = torch.arange(len(place), device=place.device)
        by_token = rows[place].view(*weights.shape, rows.shape[-1])
        return (by_token * weights.unsqueeze(-1)).sum(dim=1).to(rows.dtype)


def grouped_linear(rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Multiply each group of rows by its own matrix.

    Args:
        rows: [n, inputs], the rows of the first group first.
        weights: [groups, outputs, inputs]
        counts: [groups], the rows of each group; they add up to n.

    Returns:
        [n, outputs]. Every matrix gets a gradient, of zeros if its group is empty.
    """
    if len(rows) and _fits_grouped_product(weights):  # which does not wait for the device to know the counts
        offsets = counts.cumsum(0, dtype=torch.int32)
        return F.grouped_mm(rows, weights.transpose(1, 2), offs=offsets)
    groups = zip(torch.split(rows, counts.tolist()), weights.unbind(), strict=True)
    return torch.cat([F.linear(group, weight) for group, weight in groups])


def balance_loss(router_logits: Tensor, counted: Tensor, *, top_k: int) -> Tensor:
    """The balancing loss of each sequence, summed over the tokens that count: the number of tokens if all is balanced.

    For a sequence of T tokens it is T · E · Σ_e f_e · P_e: f_e is the share of its choices that fell on expert e, P_e
    the mean probability of e (the sequence-wise loss of DeepSeek-V3, arXiv:2412.19437, eq. 17-20, without its factor).
    Being a sum over sequences, it is the same however a step is divided into micro-batches and among ranks. That of
    the Switch Transformer (arXiv:2101.03961) is a product of two means over whatever lies in one micro-batch.

    Args:
        router_logits: [sequences, length, num_experts]
        counted: [sequences, length], true for the tokens that count.
        top_k: experts per token.

    Returns:
        A scalar in float32, to be added, times a coefficient, to the total of a Loss whose count is that of tokens.
    """
    num_experts = router_logits.shape[-1]
    probabilities = router_logits.float().softmax(dim=-1)
    chosen = F.one_hot(router_logits.topk(top_k, dim=-1).indices, num_experts).sum(dim=-2)
    mask = counted.unsqueeze(-1)
    tokens = counted.sum(dim=1).clamp(min=1)
    choices = (chosen * mask).sum(dim=1)  # [sequences, num_experts]
    mass = torch.where(mask, probabilities, 0).sum(dim=1)
    return ((choices * mass).sum(dim=-1) * num_experts / (top_k * tokens)).sum()


def router_z_loss(router_logits: Tensor, counted: Tensor) -> Tensor:
    """The squared log of the softmax's denominator, summed over the tokens that count: it keeps logits small.

    ST-MoE (arXiv:2202.08906), eq. 5, there as a mean.

    Args:
        router_logits: [..., num_experts]
        counted: [...], true for the tokens that count.
    """
    return torch.where(counted, router_logits.float().logsumexp(dim=-1).square(), 0).sum()


def _fits_grouped_product(weights: Tensor) -> bool:
    if not (weights.is_cpu or (weights.is_cuda and torch.cuda.get_device_capability(weights.device) >= CAPABILITY)):
        return False
    return all(size * weights.element_size() % ALIGNMENT_BYTES == 0 for size in weights.shape[1:])


def _in_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype of autocast, if it is on: the grouped product is not among the operations it casts."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(tensor.to(dtype) for tensor in tensors)
