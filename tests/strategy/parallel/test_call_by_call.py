"""A predict hook under a pipeline may call its model as often as it likes, and decide by what it says."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from runner.optimizer.sgd import SGD
from runner.protocols import Loss, MicroBatch
from runner.strategy.parallel import Parallel
from runner.strategy.parallel.schedule import PipelineSettings
from tests.strategy.parallel.small_gpt import GPT, Case, seeded_gpt2, seeded_llama
from tests.strategy.ranks import builder, on_ranks

PIPELINE = Parallel(pipeline=2, shard=1, pipelining=PipelineSettings())
PROMPTS = torch.arange(1, 13, dtype=torch.int64).view(3, 4)
LONGEST = 10


def sampled(model: nn.Module, prompts: Tensor) -> dict[str, Any]:
    """Bytes drawn until there is an even one in each row: how often the model is called depends on what is drawn."""
    found = prompts
    while found.shape[1] < LONGEST:
        logits = model(found)
        found = torch.cat([found, torch.multinomial(logits[:, -1].softmax(-1), 1)], dim=1)
        if (found[:, 4:] % 2 == 0).any(1).all():
            break
    return {"found": found, "logits": model(found), "noise": torch.rand(len(prompts)).tolist()}


def generated(model: Any, prompts: Tensor, **options: Any) -> dict[str, Tensor]:
    """What transformers' own search finds."""
    return {"found": model.generate(prompts, max_new_tokens=5, do_sample=False, pad_token_id=0, **options)}


def predictions(world: Any, build: Callable[[], nn.Module], hook: Callable[..., Any]) -> Any:
    """The outputs of two batches on each rank, or the error."""
    made = builder(build=build, optimizer=partial(SGD(lr=0.1).build, items=1), loss=hook)
    loss = lambda model, batch, items: Loss(torch.zeros(()), 0, outputs=hook(model, batch))  # noqa: E731
    torch.manual_seed(7)
    placed = PIPELINE.place(replace(made, loss=loss, predicts=True), world)
    batches = [MicroBatch(PROMPTS, 3), MicroBatch(PROMPTS + 1, 3)]
    try:
        return [one.outputs for one in placed.evaluate(iter(batches))]
    except Exception as error:  # noqa: BLE001  the test looks at it
        return repr(error)


def test_calls_may_depend_on_what_is_drawn(tmp_path: Path) -> None:
    of_first, of_last = on_ranks(2, predictions, GPT.build, sampled, scratch=tmp_path, axes=PIPELINE.axes(2))
    assert not any(of_first)
    whole = GPT.build().eval()
    for outputs in of_last:
        with torch.no_grad():
            assert_close(outputs["logits"], whole(outputs["found"]), rtol=0, atol=2e-6)
    first, second = of_last
    assert first["noise"] != second["noise"]  # calls leave the hook's generator alone
    assert {one["found"].shape[1] for one in of_last} < set(range(5, LONGEST + 1))


@pytest.mark.parametrize("build", [seeded_gpt2, seeded_llama])
def test_transformers_generates_as_in_one_process(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    hook = partial(generated, use_cache=False)
    _, of_last = on_ranks(2, predictions, build, hook, scratch=tmp_path, axes=PIPELINE.axes(2))
    assert not isinstance(of_last, str), of_last
    whole: Any = build().eval()
    for outputs, prompts in zip(of_last, (PROMPTS, PROMPTS + 1), strict=True):
        assert torch.equal(outputs["found"], hook(whole, prompts)["found"])


def test_a_cache_that_stages_would_divide_is_told(tmp_path: Path) -> None:
    errors = on_ranks(2, predictions, seeded_gpt2, generated, scratch=tmp_path, axes=PIPELINE.axes(2))
    for error in errors:
        assert "Under a pipeline, only tensors, numbers and text pass" in error
        assert "use_cache=False" in error


def test_a_model_may_return_numbers_and_nothing(tmp_path: Path) -> None:
    case = Case(Talkative, GPT.loss, GPT.collate, {})
    first, last = on_ranks(2, predictions, case.build, said, scratch=tmp_path, axes=PIPELINE.axes(2))
    assert not any(first)
    assert last[0]["said"] == [("text", 3, None)] * 3


def test_a_model_that_decides_by_values_at_its_end_is_told(tmp_path: Path) -> None:
    errors = on_ranks(2, predictions, Deciding, said, scratch=tmp_path, axes=PIPELINE.axes(2))
    assert all("the predict hook's model decides by values" in error for error in errors)


class Talkative(nn.Module):
    """Returns other things than tensors, too."""

    def __init__(self) -> None:
        super().__init__()
        self.gpt = GPT.build()

    def forward(self, tokens: Tensor, *, suffix: str) -> Any:
        return {"logits": self.gpt(tokens), "suffix": suffix, "items": len(tokens), "nothing": None}


class Deciding(Talkative):
    """Looks at its logits."""

    def forward(self, tokens: Tensor, *, suffix: str) -> Any:
        found = super().forward(tokens, suffix=suffix)
        return found if found["logits"].sum() > 0 else found | {"suffix": ""}


def said(model: nn.Module, prompts: Tensor) -> dict[str, Any]:
    found = model(prompts, suffix="text")
    assert found["logits"].shape == (3, 4, 256)
    return {"said": [(found["suffix"], found["items"], found["nothing"])] * 3}
