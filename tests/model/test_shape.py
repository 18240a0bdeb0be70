"""What is done to any model before a strategy sees it: blocks found, recomputed, compiled; names as they were."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from runner.config.of_blocks import Compile, Compiled
from runner.errors import SpecError
from runner.model.blocks import named_blocks, own_classes
from runner.model.compiling import compile_in_place
from runner.model.recompute import recompute
from tests.project.user_hooks.tower import Block, build_model

X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))


def seeded_model(**arguments: Any) -> Any:
    torch.manual_seed(0)
    return build_model(**arguments)


def gradients(model: Any) -> dict[str, Any]:
    model(X).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same(ours: Any, theirs: Any) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("selective", [False, True])
def test_recomputing_changes_no_bit_and_no_name(selective: bool) -> None:
    model = seeded_model()
    recompute(model.blocks, selective=selective)
    assert type(model.blocks[0]) is Block
    assert model.state_dict().keys() == seeded_model().state_dict().keys()
    assert_same(gradients(model), gradients(seeded_model()))


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 2)

    def forward(self, x: Any) -> Any:
        return nn.functional.dropout(self.line(x), 0.5)


def test_what_is_recomputed_draws_the_same_random_numbers() -> None:
    torch.manual_seed(0)
    model = Noisy()
    plain = [Noisy()]
    plain[0].load_state_dict(model.state_dict())
    recompute([model], selective=False)
    found = []
    for one in (model, plain[0]):
        torch.manual_seed(1)
        found.append(gradients(one))
    assert_same(*found)


class Stateful:
    """Bytes that the forward keeps for backward."""

    def __init__(self, model: Any) -> None:
        self.bytes = 0
        own = {parameter.data_ptr() for parameter in model.parameters()} | {X.data_ptr()}

        def pack(tensor: Any) -> Any:
            if tensor.data_ptr() not in own:
                self.bytes += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(X)


def test_recomputing_keeps_only_what_enters_each_block() -> None:
    plain, whole = seeded_model(blocks=4), seeded_model(blocks=4)
    recompute(whole.blocks, selective=False)
    saved = Stateful(plain).bytes - Stateful(whole).bytes
    # A block keeps its norm's output and two statistics, two widened tensors of 3 × 5 and no more; that is recomputed.
    assert saved >= 4 * (4 * 5 + 2 * 4 * 3 * 5) * 4


def test_blocks_are_those_named_else_those_the_model_names() -> None:
    model = build_model(blocks=2)
    assert own_classes(model) == ["Block"]
    assert isinstance(model.blocks, nn.ModuleList)
    assert named_blocks(model, [], key="blocks.classes") == list(model.blocks)
    assert named_blocks(model, ["LayerNorm"], key="blocks.classes") == [block.norm for block in model.blocks]
    nested = nn.Sequential(nn.Sequential(nn.Linear(1, 1)))
    assert named_blocks(nested, ["Sequential"], key="blocks.classes") == [nested]


def test_blocks_that_nobody_names_are_asked_for() -> None:
    with pytest.raises(SpecError, match=r"blocks.classes: which modules are blocks\? .* of: Block, LayerNorm, Linear"):
        named_blocks(build_model(names_blocks=False), [], key="blocks.classes")


def test_compiling_in_place_keeps_classes_and_names() -> None:
    model = seeded_model()
    compile_in_place([model], Compile(what=Compiled.MODEL, backend="eager"))
    before = counters["stats"]["unique_graphs"]
    model(X)
    assert counters["stats"]["unique_graphs"] == before + 1
    assert type(model.blocks[0]) is Block
    assert model.state_dict().keys() == seeded_model().state_dict().keys()
    assert_same(gradients(model), gradients(seeded_model()))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch._dynamo's
@pytest.mark.parametrize("selective", [False, True])
def test_a_recomputed_block_is_compiled_with_its_recomputation(selective: bool) -> None:
    model = seeded_model(blocks=2)
    recompute(model.blocks, selective=selective)
    compile_in_place(model.blocks, Compile(what=Compiled.BLOCKS, backend="aot_eager"))
    before = counters["stats"]["unique_graphs"]
    ours = gradients(model)
    assert counters["stats"]["unique_graphs"] == before + 1  # equal blocks share it
    theirs = gradients(seeded_model(blocks=2))
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-6) for name in theirs)  # fp32 rounding


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Compile(what=Compiled.MODEL, backend="inducter"), "compile.backend: inducter: there is no such backend. Did"),
        (Compile(what=Compiled.MODEL, mode="fast"), "compile.mode: fast: there is no such mode"),
    ],
)
def test_a_compiler_that_is_not_there_is_named_with_those_that_are(part: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        compile_in_place([build_model()], part)


def test_a_mode_is_inductors() -> None:
    with pytest.raises(
        ValueError, match=r"mode=max-autotune is a mode of inductor, but compile\.backend=eager\. Use null\."
    ):
        Compile(backend="eager", mode="max-autotune")
