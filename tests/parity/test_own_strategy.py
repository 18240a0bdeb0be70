"""A strategy that a user wrote, one class and one YAML file in their own directory, keeps the promises of ours.

Its files are those that docs/own_strategy.md shows.
"""

import pytest
import torch

from tests.docs.test_commands import CHECKOUT, FILE
from tests.parity.options import TOWER, tensors

ONCE = ["strategy=once", "hardware.processes=2", "batch.micro_items=3"]  # of 12 items: two rounds on each of two ranks
STEPS, STOPPED_AT = 7, 4  # step 5 ends an epoch of 50 with 2 items for two ranks: its second round is fillers


@pytest.fixture(autouse=True)
def files_of_the_page(project):
    """What the page shows, in the user's project."""
    for name, content in FILE.findall((CHECKOUT / "docs" / "own_strategy.md").read_text()):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(content)


def close(ours, theirs):
    """Model and optimizer of two runs' last checkpoints."""
    ours, theirs = tensors(ours, STEPS, prefix=""), tensors(theirs, STEPS, prefix="")
    names = {name for name in theirs if name.startswith(("model.", "optimizer.")) and name != "model.seen"}
    assert names == {name for name in ours if name.startswith(("model.", "optimizer.")) and name != "model.seen"}
    for name in names:
        # fp32 sums in another order, through seven steps of AdamW.
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize("clip", ["clip.norm=null", "clip.norm=0.3"])
@pytest.mark.parametrize("loss", ["compute_loss", "mean_loss"])
def test_two_ranks_reach_the_weights_of_one_process(runner, loss, clip):
    """Counts are uneven (weights 1 to 4 of each item), and so is the end of the epoch."""
    common = ["train", "points", f"loss._target_=user_hooks.points.{loss}", clip, f"run.steps={STEPS}"]
    alone, pair = runner(*common), runner(*common, *ONCE)
    close(pair, alone)
    for one, two in zip(alone.metrics(), pair.metrics(), strict=True):
        assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize(("first", "then"), [("once", "ddp"), ("ddp", "once")])
def test_ddp_continues_its_checkpoint_and_it_continues_that_of_ddp(runner, first, then):
    """With tied parameters and a buffer."""
    common = [*TOWER, f"run.steps={STEPS}", *ONCE[1:]]
    expected = runner(*common, f"strategy={first}")
    stopped = runner(*common, f"strategy={first}", f"run.stop_at_step={STOPPED_AT}")
    close(runner("resume", str(stopped.run_dir.path), f"strategy={then}"), expected)


NORMED = """
from torch import nn

def build_model():
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))
"""


def test_buffers_are_those_of_rank_0_as_under_ddp(runner, project):
    """Each rank evaluates its items with its own running statistics, so that the evaluations show them."""
    (project / "user_hooks" / "normed.py").write_text(NORMED)
    model = ["train", "points", "model._target_=user_hooks.normed.build_model", "~model.dropout", "run.steps=4"]
    common = [*model, "eval.every_steps=2", "hardware.processes=2"]
    synced, ours, loose = (
        runner(*common, *strategy).metrics()[-1]["eval/loss"]
        for strategy in (["strategy=ddp"], ["strategy=once"], ["strategy=once", "strategy.sync_buffers=false"])
    )
    assert ours == pytest.approx(synced, rel=1e-6)
    assert loose != pytest.approx(synced, rel=1e-5)  # 1.5e-4 apart after four steps


def test_its_keys_are_checked_like_those_of_any_option(runner):
    ended = runner("check", "points", *ONCE, "strategy.sync_bufers=true", code=2)
    assert "strategy.sync_bufers" in ended.stderr + ended.stdout
    assert "sync_buffers" in ended.stderr + ended.stdout
