"""A stage's weights are those of one process, although the weights of other stages get no memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Module

from runner.errors import ModelError
from runner.strategy.parallel.build_own import build_own
from tests.strategy.parallel.small_gpt import seeded_gpt, seeded_gpt2


class LooksAtDevice(Module):
    """Initialises what is not on the meta device, as libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        for layer in self.layers:
            if not layer.weight.is_meta and layer.weight.device.type != "meta":
                nn.init.orthogonal_(layer.weight)


class Copies(Module):
    """Initialises the last layer with the weights of the first."""

    def __init__(self) -> None:
        super().__init__()
        first, *_, last = layers = [nn.Linear(3, 3) for _ in range(3)]
        self.layers = nn.ModuleList(layers)
        with torch.no_grad():
            last.weight.copy_(first.weight)


class Redraws(Module):
    """Draws again what is too large, so that what it draws depends on what it has drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        for layer in self.layers:
            nn.init.trunc_normal_(layer.weight)


def seeded(build: Callable[[], Module]) -> Module:
    torch.manual_seed(0)
    return build()


def encoder() -> Module:
    """Layers that are copies of one."""
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2, enable_nested_tensor=False)


def built(build: Callable[[], Module], prefixes: tuple[str, ...]) -> Module:
    """The model with the parameters whose names begin so."""

    def own(model: Any) -> set[str]:
        return {name for name, _ in model.named_parameters(remove_duplicate=False) if name.startswith(prefixes)}

    return build_own(build, own)


@pytest.mark.parametrize(
    ("build", "prefixes"),
    [
        (seeded_gpt, ("embedding", "blocks.0")),
        (seeded_gpt, ("blocks.1", "norm", "head")),
        (seeded_gpt2, ("transformer.wte", "transformer.h.1", "lm_head")),  # one weight, under two names
        (lambda: seeded(LooksAtDevice), ("layers.2",)),
        (lambda: seeded(encoder), ("layers.1",)),
    ],
    ids=["first", "last", "tied", "looks at the device", "copies a layer"],
)
def test_own_weights_are_those_of_one_process_and_others_have_no_memory(
    build: Callable[[], Module], prefixes: tuple[str, ...]
) -> None:
    whole = dict(build().named_parameters())
    state = torch.get_rng_state()
    found = dict(built(build, prefixes).named_parameters())
    assert found.keys() == whole.keys()
    for name, weight in found.items():
        if name.startswith(prefixes):
            assert torch.equal(weight, whole[name]), name
    assert torch.equal(torch.get_rng_state(), state)
    # Copies of a layer are made behind the modules' back: they have memory until the stage is cut out.
    assert all(weight.is_meta for name, weight in found.items() if not name.startswith((*prefixes, "layers.0.")))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Copies, "the model cannot be built without the weights of other stages"),
        (Redraws, r"Tensor\.item\(\) cannot be called on meta tensors\). Use false"),
    ],
)
def test_a_model_whose_weights_depend_on_others_is_told(build: Callable[[], Module], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        built(build, ("layers.2",))
