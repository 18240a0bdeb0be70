"""A model that is built for a checkpoint has no random weights, and everything else as always."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from runner.model.unset_weights import build_unset


class Counted:
    """A model hook that seeds, and counts how often it is called."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self.build = build
        self.calls = 0

    def __call__(self) -> nn.Module:
        self.calls += 1
        torch.manual_seed(0)
        return self.build()


def initialised(fill: Callable[[Any], object]) -> nn.Module:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        fill(layer.weight)
    return layer


def tied() -> nn.Module:
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = one.weight
    return nn.Sequential(one, other)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(3, 4),
    "embedding": lambda: nn.Embedding(5, 4, padding_idx=0),
    "convolution": lambda: nn.Conv2d(3, 4, 2),
    "norms": lambda: nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4), nn.Linear(4, 4)),
    "lstm": lambda: nn.LSTM(3, 4),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2),
    "scaled": lambda: initialised(lambda weight: weight.data.normal_().mul_(0.02)),
    "replaced": lambda: initialised(lambda weight: setattr(weight, "data", torch.randn(4, 4))),
    "tied": tied,
    "narrow": lambda: nn.Linear(4, 4).to(torch.bfloat16),
}


@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_random_weights_are_left_out_and_all_else_is_as_always(build: Callable[[], nn.Module]) -> None:
    hook = Counted(build)
    expected, found = hook().state_dict(), build_unset(hook).state_dict()
    assert hook.calls == 2  # of which one was for what is expected
    assert {name: (one.shape, one.dtype) for name, one in found.items()} == {
        name: (one.shape, one.dtype) for name, one in expected.items()
    }
    for name, one in expected.items():
        if one.ndim == 0 or bool((one == one.flatten()[0]).all()):  # ones and zeros
            assert torch.equal(found[name], one), name


def test_no_random_number_is_drawn_for_weights() -> None:
    def build() -> nn.Module:
        before = torch.get_rng_state()
        layer = nn.Linear(1000, 1000)
        assert torch.equal(torch.get_rng_state(), before)
        return layer

    build_unset(build)


class Holding(nn.Module):
    """Beside its weight, it holds what `make` returns of it in a place that no checkpoint replaces."""

    def __init__(self, hold: Callable[["Holding", Tensor], object]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 4))
        nn.init.normal_(self.weight)
        hold(self, self.weight.detach())


def in_buffer(module: Holding, value: Tensor) -> None:
    module.register_buffer("held", value, persistent=False)


def in_attribute(module: Holding, value: object) -> None:
    module.held = value  # type: ignore[assignment]


NEEDED: dict[str, Callable[[Holding, Tensor], object]] = {
    "a random buffer": lambda module, weight: in_buffer(module, torch.randn(4)),
    "a random buffer that is filled in place": lambda module, weight: in_buffer(module, torch.empty(4).uniform_()),
    "a buffer of a random order": lambda module, weight: in_buffer(module, torch.randperm(4)),
    "a buffer computed from a weight": lambda module, weight: in_buffer(module, weight.norm(dim=0) + 1),
    "a buffer that a weight is copied into": lambda module, weight: in_buffer(module, torch.zeros(4, 4).copy_(weight)),
    "a view of a weight's copy": lambda module, weight: in_attribute(module, weight.clone()[0]),
    "a list": lambda module, weight: in_attribute(module, [weight * 2]),
    "a number": lambda module, weight: in_attribute(module, weight.sum().item()),
    "numbers": lambda module, weight: in_attribute(module, weight.tolist()),
    "a decision": lambda module, weight: in_attribute(module, bool(weight[0, 0] > 0)),
    "a comparison": lambda module, weight: in_attribute(module, torch.equal(weight, weight + 0)),
    "an array": lambda module, weight: in_attribute(module, torch.from_numpy(weight.numpy().copy())),
    "an address": lambda module, weight: in_attribute(module, weight.data_ptr() != 0),
    "a weight that is drawn until it is small": lambda module, weight: in_attribute(module, truncated(module)),
    "changed by foreach": lambda module, weight: in_attribute(module, foreach_added(weight)),
    "a buffer of a slice of memory": lambda module, weight: in_attribute(module, halves(module)),
}


def foreach_added(weight: Tensor) -> Tensor:
    found = torch.zeros(4, 4)
    torch._foreach_add_([found], [weight])
    return found


def truncated(module: Holding) -> int:
    """torch looks at what it has drawn."""
    nn.init.trunc_normal_(module.weight, std=0.02)
    return 0


def halves(module: Holding) -> Tensor:
    whole = torch.randn(8, 4)
    module.weight = nn.Parameter(whole[:4])
    return whole[4:]


@pytest.mark.parametrize("hold", NEEDED.values(), ids=NEEDED)
def test_a_hook_that_needs_values_is_called_once_more(hold: Callable[[Holding, Tensor], object]) -> None:
    hook = Counted(lambda: Holding(hold))
    expected: Any = hook()
    found: Any = build_unset(hook)
    assert hook.calls == 3
    assert torch.equal(found.weight, expected.weight)
    for one, other in zip(held(found), held(expected), strict=True):
        assert torch.equal(one, other)


def held(module: Any) -> list[Tensor]:
    """What it holds, as tensors."""
    return [torch.as_tensor(one) for one in (module.held if isinstance(module.held, list) else [module.held])]


def test_a_generator_of_the_hook_draws_as_always() -> None:
    def hold(module: Holding, weight: Tensor) -> None:
        generator = torch.Generator().manual_seed(1)
        torch.empty(4).normal_(generator=generator)
        in_buffer(module, torch.empty(4).normal_(generator=generator))

    hook = Counted(lambda: Holding(hold))
    expected: Any = hook()
    found: Any = build_unset(hook)
    assert hook.calls == 2
    assert torch.equal(found.held, expected.held)


def test_what_the_hook_raises_is_raised() -> None:
    def build() -> nn.Module:
        raise ValueError("no such width")

    with pytest.raises(ValueError, match="no such width"):
        build_unset(build)
