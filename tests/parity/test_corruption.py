"""Law 9: a corrupted checkpoint is neither skipped nor loaded; the error names the file and a way out that works."""

import torch
from safetensors.torch import load_file


def test_a_corrupted_checkpoint_stops_the_resume_and_the_older_one_goes_on_from_there(runner):
    expected = runner("train", "points")
    stopped = runner("train", "points", "run.stop_at_step=9")
    run_dir = stopped.run_dir
    assert sorted(path.name for path in run_dir.checkpoints.iterdir()) == ["step_4", "step_8", "step_9"]
    payload = next((run_dir.checkpoints / "step_9").glob("*.safetensors"))
    content = bytearray(payload.read_bytes())
    content[-100] ^= 1
    payload.write_bytes(content)

    refused = runner("resume", str(run_dir.path), code=1)
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


def test_a_checkpoint_of_another_model_names_every_parameter_that_differs(runner):
    run_dir = runner("train", "points", "run.stop_at_step=4").run_dir
    refused = runner("resume", str(run_dir.path), "model.width=6", "--allow", "model.width", code=2)
    assert "there is no such key" in refused.stderr  # the recipe does not list it
    refused = runner("resume", str(run_dir.path), "+model.width=6", "--allow", "model.width", code=1)
    assert "the checkpoint is of another model" in refused.stderr
    assert "misshapen: model.0.weight is [8, 2] in the checkpoint, [6, 2] in the model" in refused.stderr
    assert "misshapen: model.3.weight is [2, 8] in the checkpoint, [2, 6] in the model" in refused.stderr
