"""Whole runs under each way of saving: any strategy writes, any other continues."""

from collections.abc import Callable

import pytest
import torch

from tests.conftest import Ended
from tests.parity.options import placed, tensors

ASYNCHRONOUS, FULL = ["checkpoint.asynchronous=true"], ["checkpoint=full"]


@pytest.mark.parametrize(
    ("strategy", "way"),
    [
        ("ddp", FULL),
        ("fsdp", FULL),
        ("fsdp", ASYNCHRONOUS),
        ("deepspeed_zero2", ASYNCHRONOUS),
        pytest.param("ddp", ASYNCHRONOUS, marks=pytest.mark.exhaustive),  # faults/test_killed.py has it
        pytest.param("deepspeed_zero2", FULL, marks=pytest.mark.exhaustive),
    ],
)
def test_two_ranks_save_as_ever_and_one_continues(
    runner: Callable[..., Ended], trained: Callable[..., Ended], strategy: str, way: list[str]
) -> None:
    common = ["run.steps=4", "checkpoint.every_steps=2"]
    plain = trained("train", "points", *common, *placed(strategy, 2), "run.stop_at_step=2")
    saved = runner("train", "points", *common, *way, *placed(strategy, 2), "run.stop_at_step=2")
    ours, theirs = tensors(saved, 2, ""), tensors(plain, 2, "")
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.equal(ours[name].nan_to_num(), theirs[name].nan_to_num()), name
    runner("resume", str(saved.run_dir.path), *placed("single", 1), "run.stop_at_step=null")
    assert saved.run_dir.read_status()["step"] == 4
