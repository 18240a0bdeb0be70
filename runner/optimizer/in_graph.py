"""The updates of torch's optimizers inside a compiled graph, on the state that the optimizer itself has made.

Rates are tensors, so that a schedule does not compile again. Scalars are computed in float64, as Python does: in
float32, ten steps of AdamW differ thirty times as much from those outside of a graph.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

Gradients = Mapping[Tensor, Tensor]
"""By parameter; a parameter without one is not updated."""


def update_adamw(optimizer: Optimizer, gradients: Gradients, rates: Sequence[Tensor]) -> None:
    """As torch.optim.AdamW.step."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        parameters = _updated(group, gradients)
        if not parameters:
            continue
        states = [optimizer.state[parameter] for parameter in parameters]
        steps = [state["step"].double() for state in states]
        first_beta, second_beta = group["betas"]
        adamw(
            parameters,
            [gradients[parameter] for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            foreach=True,
            capturable=True,
            amsgrad=False,
            beta1=first_beta,
            beta2=second_beta,
            lr=rate,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for state, step in zip(states, steps, strict=True):
            state["step"].copy_(step)


def update_sgd(optimizer: Optimizer, gradients: Gradients, rates: Sequence[Tensor]) -> None:
    """As torch.optim.SGD.step."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        parameters = _updated(group, gradients)
        if not parameters:
            continue
        has_momentum = group["momentum"] > 0
        sgd(
            parameters,
            [gradients[parameter] for parameter in parameters],
            [optimizer.state[parameter]["momentum_buffer"] if has_momentum else None for parameter in parameters],
            # The loop over parameters has been wrong with inductor: it computes add(matmul, c, alpha=…) without alpha.
            foreach=True,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=rate,  # type: ignore[arg-type]  # torch takes a tensor
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=False,
        )


def _updated(group: Mapping[str, Any], gradients: Gradients) -> list[Tensor]:
    return [parameter for parameter in group["params"] if parameter in gradients]
