"""The tracker with images that docs/own_tracker.md shows, in a user's project; nothing of the runner is edited."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Ended
from tests.docs.test_commands import CHECKOUT, FILE

SHOWN = ["tracker=[gallery,tensorboard]", "callback=[portrait]", "run.steps=6", "eval.every_steps=2"]


@pytest.fixture(autouse=True)
def files_of_the_page(project: Path) -> None:
    for name, content in FILE.findall((CHECKOUT / "docs" / "own_tracker.md").read_text()):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(content)


def gallery(ended: Any) -> Any:
    return ended.run_dir.path / "gallery"


def images(ended: Any) -> Any:
    return {path.name: path.read_bytes() for path in gallery(ended).glob("*.pgm")}


@pytest.mark.parametrize("placed", [[], ["strategy=ddp", "hardware.processes=2"]], ids=["one", "two"])
def test_it_has_numbers_images_and_the_outcome(runner: Callable[..., Ended], placed: Any) -> None:
    ended = runner("train", "points", *SHOWN, *placed)
    assert set(images(ended)) == {"weights_2.pgm", "weights_4.pgm", "weights_6.pgm"}
    header, _, pixels = images(ended)["weights_6.pgm"].partition(b"\n")
    shades = np.frombuffer(pixels, np.uint8)
    assert (header, len(shades), shades.min(), shades.max()) == (b"P5 2 8 255", 16, 0, 255)
    log = (gallery(ended) / "log.txt").read_text().splitlines()
    assert log[-1] == "the run is done"
    assert sum("portrait/largest=" in line for line in log) == 3
    assert sum("portrait/largest" in line for line in ended.metrics()) == 3


def test_a_resumed_run_has_the_same_images(runner: Callable[..., Ended]) -> None:
    whole = runner("train", "points", *SHOWN)
    stopped = runner("train", "points", *SHOWN, "run.stop_at_step=6")
    resumed = runner("resume", str(stopped.run_dir.path), "--from", "step_4")
    assert images(resumed) == images(whole)


def test_a_failed_run_is_told_from_one_that_is_done(runner: Callable[..., Ended]) -> None:
    ended = runner("train", "points", *SHOWN, "loss._target_=user_hooks.points.failing_loss", code=1)
    assert (gallery(ended) / "log.txt").read_text().splitlines()[-1] == "the run is failed"
