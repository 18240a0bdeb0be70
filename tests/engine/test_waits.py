"""Between the steps at which something is due, the engine does not wait for the device."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
import torch

from runner.composition.compose import compose
from runner.composition.find_recipe import find
from runner.config.run_dir import RunDir
from runner.data.source import endless
from runner.engine.session import open_session
from runner.world.solo import SoloWorld
from runner.world.stop import StopRequest

WARM_UP, STEPS = 3, 5
WAYS = {
    "plain": [],
    "accumulated and clipped": ["batch.micro_items=4", "clip.norm=0.1", "schedule=cosine"],
    "bf16": ["precision=bf16"],
    "averaged": ["callback=[ema]"],
    "one graph": ["compile.what=step"],
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("words", WAYS.values(), ids=WAYS)
def test_steps_do_not_wait_for_the_device(words: list[str], project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = take_steps([*words, "hardware=cuda"], project, monkeypatch, torch.device("cuda", 0))
    assert not torch.equal(before, after)


@pytest.mark.parametrize("words", [WAYS["plain"], WAYS["averaged"]], ids=["plain", "averaged"])
def test_the_steps_that_are_looked_at_are_real(
    words: list[str], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On any machine; only CUDA devices can tell whether somebody waits for them."""
    before, after = take_steps([*words, "hardware=cpu"], project, monkeypatch, torch.device("cpu"))
    assert not torch.equal(before, after)


def take_steps(
    words: list[str], project: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights before and after some steps in which waiting for a CUDA device is an error."""
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)
    spec = compose(find("points"), [*words, "run.steps=100"]).read()
    with open_session(spec, RunDir(project / "out"), SoloWorld(device), StopRequest()) as session:
        weight = next(session.training.trainable.models["model"].parameters())
        steps = endless(session.training.source)
        for batches in islice(steps, WARM_UP):
            session.take_step(batches, measure=False)
        before = weight.detach().clone()
        for batches in islice(steps, STEPS):
            with no_waits(device):
                session.take_step(batches, measure=False)
        return before, weight.detach().clone()


@contextmanager
def no_waits(device: torch.device) -> Iterator[None]:
    """Raise where the host waits for the device, inside the block."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
