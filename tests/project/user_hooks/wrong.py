"""Hooks that return what their seams do not allow."""

from importlib import import_module
from typing import Any

import torch
from torch import nn
from user_hooks.points import Points, mean_loss

from runner import Data, Loss


def not_a_module() -> Any:
    return torch.zeros(2)


def no_parameters() -> Any:
    return nn.Tanh()


def frozen() -> Any:
    model = nn.Linear(2, 2)
    model.requires_grad_(False)
    return model


def a_tuple() -> Any:
    return Points(4, 0), Points(4, 1)


def empty() -> Any:
    return Data(train=[])


def without_eval() -> Any:
    return Data(train=Points(50, 0))


def metric_no_pair(model: Any, batch: Any) -> Any:
    return Loss(mean_loss(model, batch), 1, {"accuracy": torch.tensor(0.5)})  # type: ignore[dict-item]


def metric_of_many(model: Any, batch: Any) -> Any:
    return Loss(mean_loss(model, batch), 1, {"accuracy": (torch.ones(len(batch[0])), len(batch[0]))})


def metric_named_loss(model: Any, batch: Any) -> Any:
    return Loss(mean_loss(model, batch), 1, {"loss": (torch.tensor(0.5), 1)})


def imports_nothing(model: Any, batch: Any) -> None:
    import_module("no_such_module_anywhere")
