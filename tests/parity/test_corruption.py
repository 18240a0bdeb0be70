"""Law 9: a corrupted checkpoint is neither skipped nor loaded; the error names the file and a way out that works."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Ended
from tests.parity.options import STRATEGIES, TOWER, placed

TOLD_BY_DEFAULT = ("fsdp", "deepspeed_zero1", "deepspeed_zero3")


@pytest.mark.fault(
    "each file of a checkpoint is corrupted in turn",
    "the resume stops; from the older checkpoint the losses are those of an undisturbed run",
)
def test_a_corrupted_checkpoint_stops_the_resume_and_the_older_one_goes_on_from_there(
    runner: Callable[..., Ended],
) -> None:
    expected = runner("train", "points")
    stopped = runner("train", "points", "run.stop_at_step=9")
    run_dir = stopped.run_dir
    assert sorted(path.name for path in run_dir.checkpoints.iterdir()) == ["step_4", "step_8", "step_9"]
    payload = next((run_dir.checkpoints / "step_9").glob("*.safetensors"))
    content = bytearray(payload.read_bytes())
    content[-100] ^= 1
    payload.write_bytes(content)

    refused = runner("resume", str(run_dir.path), code=8)
    assert f"{payload}" in refused.stderr
    assert "continue from it: --from step_8" in refused.stderr
    assert run_dir.read_status()["state"] == "failed"

    resumed = runner("resume", str(run_dir.path), "--from", "step_8")
    assert run_dir.read_status() == {"state": "done", "step": 10, "metrics": expected.run_dir.read_status()["metrics"]}
    assert resumed.metrics() == expected.metrics()
    ours, theirs = (
        load_file(next((one.run_dir.checkpoints / "step_10").glob("*.safetensors"))) for one in (resumed, expected)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if name.startswith("model."))


def test_a_checkpoint_of_another_model_names_every_parameter_that_differs(runner: Callable[..., Ended]) -> None:
    run_dir = runner("train", "points", "run.stop_at_step=4").run_dir
    refused = runner("resume", str(run_dir.path), "model.width=6", "--allow", "model.width", code=2)
    assert "there is no such key" in refused.stderr  # the recipe does not list it
    refused = runner("resume", str(run_dir.path), "+model.width=6", "--allow", "model.width", code=8)
    assert "the checkpoint belongs to another model" in refused.stderr
    assert "misshapen: model.0.weight is [8, 2] in the checkpoint, [6, 2] in the model" in refused.stderr
    assert "misshapen: model.3.weight is [2, 8] in the checkpoint, [2, 6] in the model" in refused.stderr


@pytest.mark.parametrize(
    "strategy",
    [pytest.param(one, marks=() if one in TOLD_BY_DEFAULT else (pytest.mark.exhaustive,)) for one in STRATEGIES],
)
def test_every_strategy_names_all_that_differs(runner: Callable[..., Ended], strategy: Any) -> None:
    """Missing, unexpected and misshapen, the same list from each."""
    run_dir = runner(*TOWER, "+model.width=6", "+model.blocks=2", "run.stop_at_step=2").run_dir
    narrower = ["model._target_=user_hooks.tower.build_model_of_rungs", "model.width=5"]
    allowed = ["--allow", "model", "--allow", "strategy"]  # replicas may come to take steps of their own
    refused = runner("resume", str(run_dir.path), *placed(strategy, 2), *narrower, *allowed, code=8).stderr
    told = {line.strip() for line in refused.splitlines() if " in the checkpoint" in line}
    blocks = {"norm.weight": (6,), "norm.bias": (6,), "widen.weight": (18, 6), "widen.bias": (18,)}
    blocks |= {"narrow.weight": (6, 18), "narrow.bias": (6,)}
    held = [f"model.{name}.{index}.{inner}" for name in ("blocks", "rungs") for index in (0, 1) for inner in blocks]
    expected = {f"unexpected in the checkpoint: {name}" for name in held if ".blocks." in name}
    expected |= {f"missing in the checkpoint: {name}" for name in held if ".rungs." in name}
    expected |= {
        "misshapen: model.bottom.weight is [6, 2] in the checkpoint, [5, 2] in the model",
        "misshapen: model.bottom.bias is [6] in the checkpoint, [5] in the model",
    }
    assert told == expected
