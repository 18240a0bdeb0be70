"""The gradients of a step as a rank has them: its part, their norm, and whether they are finite."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import get_total_norm


def same_on_every_rank(found: Tensor) -> Tensor:
    """The flag itself: every rank has the same gradients."""
    return found


def gradients_of_parameters(parameters: Sequence[Parameter]) -> list[Tensor]:
    """The gradients of those parameters that have one."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def norm_of_whole(gradients: list[Tensor], parameters: Sequence[Parameter]) -> Tensor:
    """The 2-norm of gradients of which this rank has all."""
    return get_total_norm(gradients)


class Gradients(NamedTuple):
    """What a rank has of the gradients, and what ranks find out about them together."""

    of: Callable[[Sequence[Parameter]], list[Tensor]] = gradients_of_parameters
    """This rank's part of the parameters' gradients, not copied."""
    norm: Callable[[list[Tensor], Sequence[Parameter]], Tensor] = norm_of_whole
    """The 2-norm of the full gradient, given this rank's part of it, and all parameters; of these, the gradients belong
    to those that have one, in the same order.
    """
    found_inf: Callable[[Tensor], Tensor] = same_on_every_rank
    """Given whether this rank's part has a non-finite value (0 or 1), whether any rank's has."""


WHOLE = Gradients()
"""Every rank has all of them, and the same."""


def all_finite(gradients: Sequence[Tensor]) -> Tensor:
    """Whether all elements are finite, as a boolean scalar; does not wait for the device."""
    gradients = [gradient for gradient in gradients if gradient.numel()]  # a rank's shard may be empty
    if not gradients:
        return torch.tensor(True)
    largest = torch._foreach_norm(gradients, math.inf)  # NaN where there is one
    device = largest[0].device  # some gradients may be in host memory
    return torch.stack([one.to(device) for one in largest]).isfinite().all()
