"""`runner train --try`: train, evaluate, save, resume, in a few steps of any recipe; and nothing is left of it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ended

WHOLE_WAY = """\
trained    4 of 10 steps: train/loss {loss} → {loss}
evaluated  eval/loss {loss}, eval/accuracy {loss}
saved      step_2 ({loss} MB)
resumed    from step_2, and saved step_4
all of it works{trackers}: {loss} s, and nothing is left of it
"""


def pattern(text: str, *, trackers: str = "") -> str:
    """A regular expression in which any number may stand for a loss."""
    return re.escape(text.replace("{trackers}", trackers)).replace(re.escape("{loss}"), r"[\d.e-]+")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param((), id="as it is"),
        pytest.param(("strategy=ddp", "hardware.processes=2"), id="two ranks"),
        pytest.param(("checkpoint=none", "eval.every_steps=null"), id="saves nothing"),
        pytest.param(("schedule=cosine", "schedule.warmup_steps=9", "checkpoint.at_end=false"), id="long warm-up"),
        pytest.param(("run.stop_at_step=9", "run.dir=somewhere"), id="other stop and place"),
    ],
)
def test_it_goes_the_whole_way_and_leaves_nothing(
    runner: Callable[..., Ended], project: Path, words: tuple[str, ...]
) -> None:
    before = sorted(project.rglob("*"))
    ended = runner("train", "points", "--try", *words)
    assert re.fullmatch(pattern(WHOLE_WAY), ended.stdout)
    assert [path for path in sorted(project.rglob("*")) if path not in before and path.suffix != ".pyc"] == []


def test_trackers_hear_nothing_of_it(runner: Callable[..., Ended], project: Path) -> None:
    ended = runner("train", "points", "--try", "tracker=[tensorboard,wandb]", "tracker.wandb.mode=offline")
    assert re.fullmatch(pattern(WHOLE_WAY, trackers=", without its trackers (tensorboard, wandb)"), ended.stdout)


def test_a_locked_run_of_one_step_has_nothing_to_resume(runner: Callable[..., Ended]) -> None:
    runner("lock", "points", "run.steps=1")
    lines = runner("train", "points.lock", "--try").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["trained", "evaluated", "saved", "all"]


def test_what_fails_keeps_its_directory_and_its_exit_code(runner: Callable[..., Ended], project: Path) -> None:
    ended = runner("train", "points", "--try", "model._target_=user_hooks.points.no_such", code=2)
    assert "no_such" in ended.stderr
    assert not (project / "outputs").exists()
    (project / "user_hooks" / "broken.py").write_text("def loss(model, batch):\n    return None\n")
    ended = runner("train", "points", "--try", "loss._target_=user_hooks.broken.loss", code=3)
    (left,) = re.findall(r"^The try failed. Its directory stays: (.*)$", ended.stderr, re.MULTILINE)
    assert (Path(left) / "failures").is_dir()


def test_it_is_no_sweep_and_prints_no_configuration(runner: Callable[..., Ended]) -> None:
    for flag in ("-m", "--cfg=job"):
        assert "does not go together with --try" in runner("train", "points", "--try", flag, code=2).stderr
