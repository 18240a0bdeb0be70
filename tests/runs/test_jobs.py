"""`runner evaluate` and `runner predict`: a run's weights, used without training them."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file

from runner.config.run_dir import RunDir
from tests.conftest import Ended, Started

HOOKS = """
import time
from pathlib import Path
import torch
from runner import Data, Loss
from user_hooks import points

def loss(model, batch):
    x, y, weight = batch
    result = points.compute_loss(model, batch)
    scores = model(x)
    return result._replace(outputs={"first": x[:, 0], "scores": scores, "pair": x, "found": scores.argmax(1)})

def predict(model, batch, seen, pause=0.0):
    time.sleep(pause)
    with open(seen, "a") as file:
        print(*batch[0][:, 0].tolist(), sep="\\n", file=file)
    text = [str(one) for one in batch[1].tolist()]
    return {"first": batch[0][:, 0], "text": text, "none": [[float("nan")]] * len(text)}

def mapping(model, batch):
    return model(batch[0])

class Stream:
    def __iter__(self):
        return iter([])

def stream():
    return Data(train=points.Points(50, 0), eval=Stream())

def watched(calls, **arguments):
    before = torch.random.get_rng_state()
    model = points.build_model(**arguments)
    with open(calls, "a") as file:
        print("left out" if torch.equal(torch.random.get_rng_state(), before) else "drawn", file=file)
    return model

def several():
    return Data(train=points.Points(50, 0), eval={"near": points.Points(5, 1), "far": points.Points(7, 2)})
"""
PAIR = ["hardware.processes=2"]
TRAIN = ["train", "points", "hardware=cpu", "hardware.threads=1", "run.dir=run", "checkpoint.keep_last=null"]


@pytest.fixture(autouse=True)
def files(project: Path) -> None:
    (project / "user_hooks" / "jobs.py").write_text(HOOKS)


@pytest.fixture
def run(runner: Callable[..., Ended]) -> Ended:
    """Ten steps; checkpoints after 4, 8 and 10, evaluations after 5 and 10 (by an average of the weights)."""
    return runner(*TRAIN, "callback=[ema]", "loss._target_=user_hooks.jobs.loss", "callback.ema.decay=0.9")


def evaluation(ended: Ended) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(ended.stdout.splitlines()[-1]).read_text())
    return found


def written(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_an_evaluation_gives_what_the_run_has_logged(run: Ended, runner: Callable[..., Ended], project: Path) -> None:
    logged = {name: value for name, value in run.metrics()[-1].items() if name.startswith("eval/")}
    assert evaluation(runner("evaluate", "run")) == {"step": 10, "metrics": logged}
    ended = runner(
        "evaluate",
        "run",
        "strategy=fsdp",
        *PAIR,
        "+metric.top._target_=torchmetrics.MeanMetric",
        "+metric.top.inputs={value: found}",
    )
    sharded = evaluation(ended)["metrics"]
    found = sharded.pop("eval/top")
    assert sharded == pytest.approx(logged, abs=1e-6)  # forwards of other batch sizes
    assert 0 < found < 1
    assert f"eval/top       {found:.6g}\n" in ended.stdout
    trained = evaluation(runner("evaluate", "run", "callback=[]"))["metrics"]
    assert trained["eval/loss"] != logged["eval/loss"]
    runner("export", "run", "--out", "weights")
    assert evaluation(runner("evaluate", "run", "--weights", "weights", *PAIR, "strategy=fsdp"))["metrics"] == (
        pytest.approx(trained, abs=1e-6)
    )
    recipe = runner("evaluate", "points", "hardware=cpu", "--weights", "weights")  # without the run's directory
    assert evaluation(recipe) == {"step": 0, "metrics": trained}
    assert Path(recipe.stdout.splitlines()[-1]).is_relative_to(project / "outputs" / "points" / "evaluations")
    assert evaluation(runner("evaluate", "run", "--step", "8"))["step"] == 8
    assert evaluation(runner("evaluate", "run", "--best"))["step"] == 8  # saved with the metrics of step 5
    assert (project / "run" / "status.json").read_text() == json.dumps(run.run_dir.read_status()) + "\n"


def test_no_random_weights_are_drawn_where_weights_are_loaded(runner: Callable[..., Ended], project: Path) -> None:
    calls = project / "calls"
    hooks = ["model._target_=user_hooks.jobs.watched", f"+model.calls={calls}", "loss._target_=user_hooks.jobs.loss"]
    runner(*TRAIN, *hooks, "run.steps=4")
    assert calls.read_text() == "drawn\n"
    runner("resume", "run", "run.steps=6")
    runner("evaluate", "run")
    runner("export", "run", "--out", "weights")
    runner("evaluate", "run", "--weights", "weights", "strategy=ddp", *PAIR)
    runner("predict", "run", "--out", "found.jsonl")
    assert calls.read_text().splitlines()[1:] == ["left out"] * 5


def test_what_cannot_be_evaluated_is_told(run: Ended, runner: Callable[..., Ended], project: Path) -> None:
    assert (
        "there is no checkpoint of step 7. There are: 4, 8, 10."
        in runner("evaluate", "run", "--step", "7", code=2).stderr
    )
    assert "--step says already which weights" in runner("evaluate", "run", "--step", "8", "--best", code=2).stderr
    assert "nowhere is not there" in runner("evaluate", "run", "--weights", "nowhere", code=2).stderr
    shutil.copytree(project / "recipes", project.parent / "strangers")
    assert "--trust" in runner("evaluate", str(project.parent / "strangers" / "points.yaml"), code=2).stderr
    (project / "empty").mkdir()
    assert "empty is not a run's directory: it has no spec.yaml." in runner("evaluate", "empty", code=2).stderr
    assert "there is no recipe 'piont'. Did you mean points?" in runner("evaluate", "piont", code=2).stderr
    assert "has the metric x/y" in runner("evaluate", "run", "--best", "checkpoint.metric=x/y", code=2).stderr
    runner("export", "run", "--out", "weights")
    ended = runner("evaluate", "run", "--weights", "weights", "+model.width=9", code=8)
    assert "misshapen: model.0.bias is [8] in the checkpoint, [9] in the model" in ended.stderr
    assert "To continue: the same command again." in ended.stderr
    (project / "weights" / "model.safetensors").write_bytes(b"12345678" * 4)
    assert "is no safetensors file" in runner("evaluate", "run", "--weights", "weights", code=8).stderr


@pytest.mark.parametrize("strategy", ["single", "fsdp", "deepspeed_zero3"])
def test_predictions_stand_in_the_order_of_the_dataset(
    run: Ended, runner: Callable[..., Ended], project: Path, strategy: str
) -> None:
    """17 items in micro-batches of 3, on two ranks: rank 1 ends with fewer, and every rank forwards equally often."""
    suffix = {"single": "jsonl", "fsdp": "parquet", "deepspeed_zero3": "safetensors"}[strategy]
    file = project / "out" / f"found.{suffix}"
    options = [f"strategy={strategy}", *(PAIR if strategy != "single" else []), "callback=[]", "eval.micro_items=3"]
    ended = runner("predict", "run", "--out", f"out/found.{suffix}", *options, timeout_s=120)
    assert Path(ended.stdout.splitlines()[-1]) == file
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    if strategy == "single":
        found: Any = {name: [row[name] for row in written(file)] for name in ("first", "scores", "found", "pair")}
    else:
        found = parquet.read_table(file).to_pydict() if strategy == "fsdp" else load_file(file)
    found = {name: torch.as_tensor(values) for name, values in found.items()}
    runner("export", "run", "--out", "weights")
    x, scores = oracle(project / "weights" / "model.safetensors")
    assert torch.equal(found["first"], x[:, 0])
    assert torch.equal(found["pair"], x)
    torch.testing.assert_close(found["scores"], scores, rtol=0, atol=1e-6)  # forwards of other batch sizes
    assert torch.equal(found["found"], scores.argmax(1))
    assert f"{file} exists already" in runner("predict", "run", "--out", str(file), *options, code=2).stderr


def oracle(weights: Path) -> tuple[Any, Any]:
    """The evaluation items, and the model's scores for them, by hand."""
    w = load_file(weights)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(17, 2, generator=generator)
    return x, torch.tanh(x @ w["0.weight"].T + w["0.bias"]) @ w["3.weight"].T + w["3.bias"]


def test_a_killed_prediction_goes_on_after_its_last_part(
    runner: Callable[..., Ended], start: Callable[..., Started], project: Path
) -> None:
    """Of a recipe, with a predict hook that notes the items that it sees."""
    predict = ["predict._target_=user_hooks.jobs.predict", "+predict.seen=seen.txt", "+predict.pause=0.06"]
    command = [
        "predict",
        "points",
        *predict,
        "--on",
        "train",
        "--out",
        "all.jsonl",
        "eval.micro_items=1",
        "hardware=cpu",
    ]
    started = start(*command)
    partial, began = project / "all.jsonl.partial", time.monotonic()
    while not list(partial.glob("part_*.jsonl")):
        assert time.monotonic() - began < 60
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    assert started.wait(30).code == -signal.SIGKILL
    [part] = partial.glob("part_*.jsonl")
    committed, before = len(written(part)), len((project / "seen.txt").read_text().split())
    assert 0 < committed < 50
    other = runner(*command, "+model.width=9", code=2)
    assert "holds parts of another prediction: model.width differed" in other.stderr
    runner(*command, "predict.pause=0.06")
    seen = [float(one) for one in (project / "seen.txt").read_text().split()]
    rows = written(project / "all.jsonl")
    assert seen[before:] == [row["first"] for row in rows[committed:]]
    assert len(rows) == 50
    assert rows[0].keys() == {"first", "text", "none"}
    assert rows[0]["none"] == [None]
    assert not partial.exists()


def test_what_cannot_be_predicted_is_told(runner: Callable[..., Ended]) -> None:
    def told(*options: str, code: int) -> str:
        return runner("predict", "points", "hardware=cpu", *options, code=code).stderr

    assert "there is nothing to write: the loss hook gives no outputs" in told("--out", "a.jsonl", code=3)
    assert "a.txt must end in .jsonl, .parquet, .safetensors" in told("--out", "a.txt", code=2)
    assert "a recipe has no checkpoints" in told("--step", "4", code=2)
    assert "--best: a recipe has no checkpoints" in told("--best", code=2)
    assert "mapping returned a Tensor, but a predict hook must return a mapping of names" in told(
        "predict._target_=user_hooks.jobs.mapping", "--out", "b.jsonl", code=3
    )
    stream = told("data._target_=user_hooks.jobs.stream", "--out", "s.jsonl", code=5)
    assert "the data hook's 'eval' dataset (Stream) is a stream, whose items have no places to go on from" in stream
    several = ["data._target_=user_hooks.jobs.several", "--out", "c.jsonl"]
    assert "Choose one: --on train | near | far" in told(*several, code=3)
    assert "there is no dataset 'fra'. Choose one: --on train | near | far" in told(*several, "--on", "fra", code=3)


def test_a_job_is_not_taken_for_a_run(run: Ended, runner: Callable[..., Ended], project: Path) -> None:
    job = Path(runner("evaluate", "run").stdout.splitlines()[-1]).parent
    assert "is not a run's directory" in runner("resume", str(job), code=2).stderr
    assert RunDir(project / "run").specs() == [project / "run" / "spec.yaml"]
