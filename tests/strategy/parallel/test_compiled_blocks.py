"""Blocks that are compiled take the steps of one process that compiles nothing, split or divided by sequence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from runner.config.of_blocks import Compile, Compiled
from runner.model.blocks import named_blocks
from runner.model.compiling import compile_in_place
from runner.model.recompute import recompute
from runner.protocols import Clip
from runner.strategy.fsdp.settings import ShardSettings
from runner.strategy.parallel import Parallel
from tests.conftest import Ended
from tests.strategy.parallel.small_gpt import GPT, GPT2, Case, alone, assert_as_alone, train
from tests.strategy.parallel.test_context import FROM_TRANSFORMERS, KINDS
from tests.strategy.ranks import on_ranks

CLIP = Clip(norm=0.1)
CLASSES = ["Block", "GPT2Block", "LlamaDecoderLayer", "Mixing", "TransformerEncoderLayer"]


def shaped(case: Case, backend: str, *, again: bool = False) -> Case:
    """The case with compiled blocks.

    Args:
        again: recompute them in backward.
    """

    def build() -> nn.Module:
        model = case.build()
        present = {type(module).__name__ for module in model.modules()} & set(CLASSES)
        blocks = named_blocks(model, sorted(present), key="blocks.classes")
        if again:
            recompute(blocks, selective=False)
        compile_in_place(blocks, Compile(what=Compiled.BLOCKS, backend=backend))
        return model

    return case._replace(build=build)


TENSOR = {"tensor": 2, "tensor_plan": dict(GPT.plan)}
LAYOUTS = [
    pytest.param(GPT2, {"context": 2}, 2, {}, id="gpt2"),
    pytest.param(GPT, {"shard": 1, **TENSOR}, 2, {}, id="tensor"),
    pytest.param(KINDS["learned bias"], {"context": 2}, 2, {}, id="learned bias"),
    *(
        pytest.param(*values, marks=pytest.mark.exhaustive)
        for values in (
            (GPT, {"context": 2, "shards": ShardSettings(wrap_classes=["Block"])}, 2, {"again": True}),
            (GPT, {"context": 2, "shard": 1, **TENSOR}, 4, {}),
            (GPT, {"context": 2, "shard": 2}, 4, {}),
            (GPT, {"context": 2}, 2, {"backend": "inductor"}),
            *(
                (case, {"context": 2}, 2, {})
                for kind, case in (KINDS | FROM_TRANSFORMERS).items()
                if kind not in ("gpt2", "learned bias")  # they are above
            ),
        )
    ),
]


JIT = "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
"""Inductor's."""
TORCHS_OWN = "ignore:<class .torch.autograd.function.Function.> should not be instantiated:DeprecationWarning"
"""What torch._dynamo does with every autograd.Function."""


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch._dynamo's
@pytest.mark.filterwarnings(TORCHS_OWN)
@pytest.mark.filterwarnings(JIT)
@pytest.mark.parametrize(("case", "sizes", "ranks", "how"), LAYOUTS)
def test_compiled_blocks_take_the_steps_of_one_process(
    case: Case, sizes: Any, ranks: int, how: Any, tmp_path: Path
) -> None:
    part = Parallel(**sizes)
    expected = alone(case, 3, CLIP, steps=3)
    compiled = shaped(case, **{"backend": "aot_eager", **how})
    axes = part.axes(ranks)
    for found in on_ranks(ranks, train, part, compiled, 3, CLIP, 3, scratch=tmp_path, axes=axes, timeout_s=170):
        assert_as_alone(found, expected)


RUN = [
    *("train", "pydoc_lm", "hardware=cpu", "model.width=16", "model.heads=4", "model.depth=2", "data.context=24"),
    *("run.steps=3", "log.every_steps=1", "eval.every_steps=null", "eval.at_end=false", "optimizer.lr=0.01"),
]
DIVIDED = ["strategy=parallel", "strategy.context=2", "hardware.processes=2", "blocks.classes=[Block]"]


@pytest.mark.exhaustive
def test_a_run_has_the_losses_of_one_process(runner: Callable[..., Ended]) -> None:
    expected = runner(*RUN, "strategy=single", "hardware.processes=1").metrics()
    found = runner(*RUN, *DIVIDED, "compile.what=blocks", "compile.backend=aot_eager", timeout_s=170).metrics()
    assert [line["train/loss"] for line in found] == pytest.approx([line["train/loss"] for line in expected], rel=1e-5)
