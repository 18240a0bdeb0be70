"""The updates of torch's optimizers inside a compiled graph, on the state that the optimizer itself has made.

Rates are tensors, so that a schedule does not compile again. Scalars are computed in float64, as Python does: in
float32, ten steps of AdamW differ thirty times as much from those outside of a graph.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

States = list[Mapping[str, Tensor]]


def update_adamw(
    parameters: list[Tensor], gradients: list[Tensor], states: States, settings: Mapping[str, Any], rate: Tensor
) -> None:
    """As torch.optim.AdamW.step."""
    steps = [state["step"].double() for state in states]
    first_beta, second_beta = settings["betas"]
    adamw(
        parameters,
        gradients,
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
        weight_decay=settings["weight_decay"],
        eps=settings["eps"],
        maximize=False,
    )
    for state, step in zip(states, steps, strict=True):
        state["step"].copy_(step)


def update_sgd(
    parameters: list[Tensor], gradients: list[Tensor], states: States, settings: Mapping[str, Any], rate: Tensor
) -> None:
    """As torch.optim.SGD.step."""
    has_momentum = settings["momentum"] > 0
    sgd(
        parameters,
        gradients,
        [state["momentum_buffer"] if has_momentum else None for state in states],
        # The loop over parameters has been wrong with inductor: it computes add(matmul, c, alpha=…) without alpha.
        foreach=True,
        weight_decay=settings["weight_decay"],
        momentum=settings["momentum"],
        lr=rate,  # type: ignore[arg-type]  # torch takes a tensor
        dampening=settings["dampening"],
        nesterov=settings["nesterov"],
        maximize=False,
    )
