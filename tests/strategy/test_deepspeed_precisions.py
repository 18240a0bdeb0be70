"""Every precision under every ZeRO stage: two ranks end where one process does, or `runner check` says why not."""

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.conftest import Ended
from tests.parity.options import CONF, STRATEGIES, TOWER, placed, tensors

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed")
STAGES = [name for name in STRATEGIES if name.startswith("deepspeed")]
PRECISIONS = sorted(path.stem for path in (CONF / "precision").glob("*.yaml"))
# A step of SGD at 0.1 moves a weight by 0.1 × a gradient below 1. Where the two cuts of a step round it otherwise, they
# part by 0.1 × what the type rounds at most, at every step: 2⁻⁸ of a bfloat16 weight near 1 itself; 1/8 of a gradient
# in float8 (E4M3 keeps 3 bits, E5M2 2). bf16 rounds activations only: as in tests/parity/test_options.py. fp32: sums
# in another order.
STEPS = 5
APART = {"fp32": 2e-6, "bf16": 1e-2, "fp16": 2e-3, "bf16_pure": STEPS * 2**-8, "fp8": 0.06}
REFUSED = {
    "fp8_te": ["precision: fp8_te needs NVIDIA's TransformerEngine", "Or use precision=fp8"],
}
IN_RANGE = {"fp16": ["precision.init_scale=1024"]}  # at the usual scale, whether a step overflows depends on its cut
CLIPS = {"free": [], "clipped": ["clip.norm=0.3", "clip.value=0.2"]}
SLICE = {("deepspeed_zero1", "bf16_pure", "clipped"), ("deepspeed_zero3", "fp8", "free")}
TALL = [*TOWER[1:], "hardware=cpu", "+model.width=16", "optimizer=sgd", "optimizer.lr=0.1", f"run.steps={STEPS}"]
PURE = ["precision=bf16_pure", "optimizer=adamw", "optimizer.lr=0.01"]


def cases() -> Iterator[Any]:
    for case in itertools.product(STAGES, APART, CLIPS):
        yield pytest.param(*case, marks=() if case in SLICE else (pytest.mark.exhaustive,), id="-".join(case))


def test_every_precision_is_one_or_the_other() -> None:
    assert sorted([*APART, *REFUSED]) == PRECISIONS


@pytest.mark.parametrize(("stage", "precision", "clips"), [*cases()])
def test_two_ranks_end_where_one_process_does(
    runner: Callable[..., Ended], stage: Any, precision: Any, clips: Any
) -> None:
    if precision.startswith("fp8") and importlib.util.find_spec("torchao") is None:
        pytest.skip("needs the extra fp8")
    common = ["train", *TALL, f"precision={precision}", *CLIPS[clips], *IN_RANGE.get(precision, [])]
    alone, pair = runner(*common), runner(*common, *placed(stage, 2), "batch.micro_items=3")
    ours, theirs = tensors(pair, STEPS), tensors(alone, STEPS)
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"model.seen"}:  # counts forwards, not steps
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=APART[precision])  # types are the same, too


OTHERWISE = {
    "offloaded": ("deepspeed_zero2", ["strategy.offload_optimizer=cpu"]),
    "offloaded_cut": ("deepspeed_zero3", ["strategy.offload_optimizer=cpu", "strategy.offload_param=cpu"]),
    "zero_init": ("deepspeed_zero3", ["strategy.zero_init=true"]),
}


@pytest.mark.parametrize("how", [pytest.param(how, marks=pytest.mark.exhaustive) for how in OTHERWISE])
def test_float16_overflows_are_left_out_wherever_the_optimizer_is(runner: Callable[..., Ended], how: Any) -> None:
    """The same steps are skipped, and the rest are the same, as without."""
    stage, more = OTHERWISE[how]
    rough = ["train", *TALL, "precision=fp16", "precision.init_scale=1e7", "optimizer=adamw", "batch.micro_items=3"]
    plain, other = (runner(*rough, *placed(stage, 2), *also) for also in ([], more))
    skipped = [ended.metrics()[-2]["train/skipped_steps"] for ended in (plain, other)]
    assert skipped[0] == skipped[1] > 2
    theirs = tensors(plain, STEPS)
    for name, tensor in tensors(other, STEPS).items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6)  # fp32 sums in another order


@pytest.mark.parametrize("stage", ["deepspeed_zero2", pytest.param("deepspeed_zero3", marks=pytest.mark.exhaustive)])
def test_an_infinity_is_found_before_elements_are_clipped(runner: Callable[..., Ended], stage: str) -> None:
    """Clipped, it would look like any large gradient, and the step would be taken."""
    rough = ["precision=fp16", "precision.init_scale=1e9", "clip.value=0.1"]
    ended = runner("train", *TALL, *rough, *placed(stage, 2), "batch.micro_items=3")
    assert ended.metrics()[-2]["train/skipped_steps"] > 9  # 10⁹ has to be halved so often at least


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", REFUSED)
def test_what_cannot_be_is_one_fault_before_launch(runner: Callable[..., Ended], stage: Any, precision: str) -> None:
    said = runner("check", *TALL, f"precision={precision}", *placed(stage, 2), code=2).stderr
    assert all(words in said for words in REFUSED[precision]), said


@pytest.mark.parametrize(
    "cuts",
    [
        pytest.param([], id="cut_after"),
        pytest.param(["strategy.zero_init=true"], marks=pytest.mark.exhaustive, id="zero_init"),
    ],
)
def test_pure_bfloat16_keeps_nothing_wider_and_goes_on_anywhere(runner: Callable[..., Ended], cuts: Any) -> None:
    """Weights and optimizer state under ZeRO are what they are in one process, to and from another strategy."""
    common = ["train", *TALL[:-1], *PURE]
    expected = runner(*common, "run.steps=8")
    stopped = runner(*common, *placed("deepspeed_zero3", 2), *cuts, "run.steps=8", "run.stop_at_step=4")
    kept = tensors(stopped, 4, prefix="")
    kept = {name: one for name, one in kept.items() if name.startswith(("model.", "optimizer.")) and one.ndim}
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}
    assert {name.rpartition(".")[2] for name in kept if name.startswith("optimizer.")} == {"exp_avg", "exp_avg_sq"}
    back = runner("resume", str(stopped.run_dir.path), "strategy=deepspeed_zero1", "run.stop_at_step=6")
    ended = runner("resume", str(back.run_dir.path), "strategy=single", "hardware.processes=1")
    theirs = {line["step"]: line["train/loss"] for line in expected.metrics() if "train/loss" in line}
    ours = {line["step"]: line["train/loss"] for line in ended.metrics() if "train/loss" in line}
    # A weight near 1 may have rounded to the other side by 2⁻⁸ at each of eight steps.
    assert ours == pytest.approx(theirs, abs=8 * 2**-8)


@pytest.mark.exhaustive
def test_a_run_goes_on_from_float32_to_bfloat16_and_back(runner: Callable[..., Ended]) -> None:
    stopped = runner("train", *TALL[:-1], "run.stop_at_step=4", *placed("deepspeed_zero2", 2))
    narrow = runner("resume", str(stopped.run_dir.path), "precision=bf16_pure", "run.steps=7")
    assert {tensor.dtype for tensor in tensors(narrow, 7).values()} == {torch.bfloat16}
    wide = runner("resume", str(stopped.run_dir.path), "precision=fp32", "run.steps=10")
    assert {tensor.dtype for tensor in tensors(wide, 10).values()} == {torch.float32}


def test_what_is_kept_cannot_be_said_otherwise_elsewhere(runner: Callable[..., Ended]) -> None:
    """A second place for the same thing, or a host that would keep it wider, is a fault."""
    wide = ["+strategy.config.bf16.bf16_master_weights_and_grads=true", "precision=bf16"]
    said = runner("check", *TALL, "strategy=deepspeed_zero2", *wide, code=2).stderr
    assert "bf16.bf16_master_weights_and_grads is False by precision and True by strategy.config" in said
    away = ["strategy.offload_optimizer=cpu", "precision=bf16_pure"]
    said = runner("check", *TALL, "strategy=deepspeed_zero2", *away, code=2).stderr
    assert "strategy.offload_optimizer: cpu: an offloaded optimizer needs float32 weights, but this" in said
    assert "keeps them in bfloat16. Use precision=bf16, or none." in said
