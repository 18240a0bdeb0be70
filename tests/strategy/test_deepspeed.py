"""What the ZeRO stages promise on real ranks: who holds how much, the same start, offload, and words for bad input."""

import importlib.util
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from runner import Loss
from runner.errors import CheckpointError, ModelError, NonFiniteError
from runner.optimizer.adamw import AdamW
from runner.precision.bf16 import BF16
from runner.precision.fp32 import FP32
from runner.protocols import Clip, MicroBatch, StepBatches, StoredTensor
from runner.strategy.deepspeed import DeepSpeed, Place
from runner.strategy.single import Single
from runner.world.solo import SoloWorld
from tests.project.user_hooks.tower import build_model
from tests.strategy.ranks import on_ranks

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed")
builds = pytest.mark.skipif(
    shutil.which("g++") is None or not Path("/usr/include/libaio.h").exists(),
    reason="needs g++ and libaio-dev to compile DeepSpeed's operators",
)
F32 = 4
X = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
SMALL = {"reduce_bucket_size": 1000, "allgather_bucket_size": 1000, "prefetch_bucket_size": 100}
CUT = DeepSpeed(stage=3, param_persistence_threshold=0, **SMALL)
STAGES = [DeepSpeed(stage=1, **SMALL), DeepSpeed(stage=2, **SMALL), CUT]


def seeded_model():
    torch.manual_seed(0)
    return build_model(width=6, blocks=2)


def sum_loss(model, batch):
    return Loss(model(batch).square().sum(), len(batch))


def prepare(world, part, *, loss=sum_loss, build=seeded_model, precision=None, clip=None):
    return part.prepare(
        build_model=build,
        build_optimizer=partial(AdamW(lr=0.01).build, items=1),
        loss=loss,
        precision=precision or FP32(),
        clip=clip or Clip(),
        world=world,
    )


def step(trainable, world, num_rounds=2):
    """Eight items over the ranks and rounds."""
    parts = X.chunk(num_rounds * world.size)[world.rank :: world.size]
    trainable.forward_backward(StepBatches([MicroBatch(part, len(part)) for part in parts], len(X)))
    return trainable.update(measure=True).grad_norm.item()


def elements(state):
    """What this rank holds of each tensor of a state: (offsets, values) of its boxes; whole tensors as one."""
    found = {}
    for name, tensor in state.tensors.items():
        if hasattr(tensor, "__create_chunk_list__"):
            chunks = tensor.__create_chunk_list__()
            found[name] = [(tuple(c.offsets), tensor.__get_tensor_shard__(_At(c.offsets)).clone()) for c in chunks]
        else:
            found[name] = [((0,) * tensor.ndim, tensor.clone())]
    return found


class _At:
    def __init__(self, offset):
        self.offset = offset


def together(of_ranks, like):
    """Whole tensors of what the ranks hold; NaN where nobody holds an element."""
    whole = {name: torch.full_like(tensor, torch.nan) for name, tensor in like.items()}
    for held in of_ranks:
        for name in whole:
            for offsets, values in held[name]:
                place = tuple(slice(o, o + n) for o, n in zip(offsets, values.shape, strict=True))
                whole[name][place] = values
    return whole


# ── Memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def held(world, part):
    """Bytes on this rank after a step: weights as the forward finds them, the optimizer's, and its state."""
    trainable = prepare(world, part)
    step(trainable, world)
    zero = trainable._engine.optimizer
    model = list(trainable.model.parameters())
    weights = sum((p.ds_tensor if hasattr(p, "ds_tensor") else p).numel() * F32 for p in model)
    gathered = sum(p.numel() * F32 for p in model if hasattr(p, "ds_tensor"))
    owners = list(zero.optimizer.state)
    state = sum(t.numel() * F32 for kept in zero.optimizer.state.values() for t in kept.values() if t.ndim)
    gradients = sum(p.grad is not None for p in [*model, *owners])
    return weights, gathered, sum(owner.numel() * F32 for owner in owners), state, gradients


def test_each_rank_holds_its_share_of_what_the_stage_cuts(tmp_path):
    sizes = [parameter.numel() for parameter in seeded_model().parameters()]
    row = -(-sum(sizes) // 4) * 4 // 2  # all parameters end to end, made a multiple of 2 × ranks, halved
    pieces = sum(-(-size // 2) for size in sizes)  # each parameter halved, rounded up
    for part in STAGES:
        for found in on_ranks(2, held, part, scratch=tmp_path):
            cut = part.stage == 3
            own = F32 * (pieces if cut else row)
            assert found == (F32 * (pieces if cut else sum(sizes)), 0, own, 2 * own, 0)


# ── The same start, the same steps ──────────────────────────────────────────────────────────────────────────────────


def held_at_first(world, part, precision):
    return elements(prepare(world, part, precision=precision).state())


@pytest.mark.parametrize("precision", [FP32(), BF16()])
@pytest.mark.parametrize("part", [*STAGES, DeepSpeed(stage=3, zero_init=True)])
def test_a_run_begins_with_the_weights_that_the_hook_makes(part, precision, tmp_path):
    """To the bit, in bfloat16 too, where DeepSpeed alone would round them."""
    expected = seeded_model().state_dict()
    expected = {f"model.{name}": tensor for name, tensor in expected.items() if name != "top.weight"}  # tied
    whole = together(on_ranks(2, held_at_first, part, precision, scratch=tmp_path), expected)
    assert all(torch.equal(whole[name], tensor) for name, tensor in expected.items())


def norms(world, part, clip):
    trainable = prepare(world, part, clip=clip)
    found = [step(trainable, world) for _ in range(3)]
    weighed = [loss.value.item() for loss in trainable.evaluate([MicroBatch(X, len(X))])]
    assert all(module.training for module in trainable.model.modules())
    return found, weighed, elements(trainable.state())


VARIANTS = {
    "offload": DeepSpeed(stage=2, offload_optimizer=Place.cpu),
    "offload_all": DeepSpeed(stage=3, offload_optimizer=Place.cpu, offload_param=Place.cpu),
    "buckets": DeepSpeed(stage=2, reduce_bucket_size=50, contiguous_gradients=False, round_robin_gradients=True),
    "overlap": DeepSpeed(stage=3, overlap_comm=True, sub_group_size=40, max_live_parameters=0, max_reuse_distance=0),
    "leaves": DeepSpeed(stage=3, moe_leaf_modules=["Block"], param_persistence_threshold=0),
    "hpz": DeepSpeed(stage=3, hpz_partition_size=2, param_persistence_threshold=0),
    "sections": DeepSpeed(stage=3, config={"zero_optimization": {"stage3_module_granularity_threshold": 1}}),
}


@pytest.mark.parametrize("part", VARIANTS.values(), ids=VARIANTS)
def test_no_setting_changes_what_is_computed(part, tmp_path):
    clip = Clip(norm=0.5)
    expected, losses, whole = norms(SoloWorld(torch.device("cpu")), Single(), clip)
    of_ranks = on_ranks(2, norms, part, clip, scratch=tmp_path, timeout_s=120)
    like = {name: values for name, ((_, values),) in whole.items() if name != "model.seen"}
    for found, weighed, _ in of_ranks:
        assert found == pytest.approx(expected, rel=1e-5)
        assert weighed == pytest.approx(losses, rel=1e-5)
    for name, tensor in together([state for *_, state in of_ranks], like).items():
        torch.testing.assert_close(tensor, like[name], rtol=0, atol=2e-6)  # fp32 sums in another order


@builds
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", [DeepSpeed(stage=2, offload_optimizer=Place.cpu, own_optimizer="AdamW")])
def test_deepspeeds_own_adam_takes_the_settings_of_the_recipe(part, tmp_path):
    expected, *_ = norms(SoloWorld(torch.device("cpu")), Single(), Clip())
    for found, *_ in on_ranks(2, norms, part, Clip(), scratch=tmp_path, timeout_s=800):
        assert found == pytest.approx(expected, rel=1e-4)  # a vectorised kernel with approximate square roots


@builds
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_a_run_whose_optimizer_is_on_a_disk_is_saved_and_continued(runner, tmp_path):
    on_disk = [
        "strategy=deepspeed_zero3",
        "strategy.offload_optimizer=nvme",
        f"strategy.optimizer_nvme_path={tmp_path}",
    ]
    wide = ["+model.width=80000", "optimizer.lr=1e-5"]  # DeepSpeed keeps in memory what has less than a mebibyte
    expected = runner("train", "points", *wide)
    stopped = runner("train", "points", "run.stop_at_step=4", *wide, *on_disk, timeout_s=800)
    assert list(tmp_path.rglob("exp_avg*.swp"))
    resumed = runner("resume", str(stopped.run_dir.path), timeout_s=800)
    for one, two in zip(resumed.metrics(), expected.metrics(), strict=True):
        assert one == pytest.approx(two, rel=1e-5)


def test_one_process_trains_with_one_stage_after_the_other(runner):
    """A sweep in one process: DeepSpeed keeps groups and engines in globals of its own."""
    swept = runner(
        "train", "points", "-m", "strategy=deepspeed_zero2,deepspeed_zero3", "sweep.dir=swept", timeout_s=120
    )
    assert "deepspeed_zero3" in swept.stdout


def test_what_deepspeed_says_goes_to_the_log(runner):
    ended = runner("train", "points", "strategy=deepspeed_zero1", "run.steps=1")
    assert ended.stdout.strip().splitlines() == [str(ended.run_dir.path)]
    assert "eepSpeed" not in ended.stderr
    assert "deepspeed" not in ended.stderr.replace(str(ended.run_dir.path), "")


SPEAKS = """
import logging
import warnings
from user_hooks import points

def build_model(dropout):
    logging.getLogger("runner").info("a line of the log")
    warnings.warn("a line warned of")
    print("a line printed")
    return points.build_model(dropout=dropout)
"""


@pytest.mark.parametrize("options", [["deepspeed_zero2"], ["deepspeed_zero3", "strategy.zero_init=true"]])
def test_what_a_model_hook_says_is_said_once_on_the_terminal_and_once_in_the_log(options, project, runner):
    (project / "user_hooks" / "speaks.py").write_text(SPEAKS)
    option, *more = options
    hook = "model._target_=user_hooks.speaks.build_model"
    ended = runner("train", "points", f"strategy={option}", *more, hook, "run.steps=1")
    log = ended.run_dir.rank_log(0).read_text()
    for line in ("a line of the log", "UserWarning: a line warned of"):
        assert (ended.stderr.count(line), log.count(line)) == (1, 1), line
    assert ended.stdout.count("a line printed") == 1
    assert "eepSpeed" not in ended.stderr


# ── Bad input ───────────────────────────────────────────────────────────────────────────────────────────────────────


def refused(world, part, how):
    """The words of the error that `how` leads to."""
    try:
        how(world, part)
    except (ModelError, NonFiniteError, CheckpointError) as error:
        return str(error)
    return "nothing was refused"


def said(part, how, tmp_path):
    first, *others = on_ranks(2, refused, part, how, scratch=tmp_path)
    assert all(other == first for other in others)
    return first


def test_an_infinite_gradient_is_no_silent_skip(tmp_path):
    def divides_by_zero(world, part):
        trainable = prepare(world, part, loss=lambda model, batch: Loss((model(batch) / 0.0).sum(), len(batch)))
        step(trainable, world)

    for part in STAGES:
        assert "the gradient of this step is not finite" in said(part, divides_by_zero, tmp_path)


class _Initialised(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        nn.init.zeros_(self.inner.weight)

    def forward(self, x):
        return self.inner(x)


def test_zero_init_refuses_a_write_that_would_be_lost(tmp_path):
    def late(world, part):
        prepare(world, part, build=_Initialised)

    words = said(DeepSpeed(stage=3, zero_init=True), late, tmp_path)
    assert "on a parameter of shape [2, 2] after its module was built" in words
    assert "strategy.zero_init=false" in words


def test_leaf_modules_that_the_model_does_not_have(tmp_path):
    part = DeepSpeed(stage=3, moe_leaf_modules=["Experts"])
    words = said(part, prepare, tmp_path)
    assert "names Experts, of which the model has none. The model has modules of Block, GELU" in words or (
        "names Experts, of which the model has none. The model has modules of Block, LayerNorm" in words
    )


def test_a_checkpoint_that_does_not_fit_is_named_whole(tmp_path):
    shapes = {f"model.{name}": tensor.shape for name, tensor in seeded_model().state_dict().items()}
    shapes.pop("model.top.weight")

    def load(world, part, changed):
        stored = {
            name: StoredTensor(tuple(shape), torch.float32) for name, shape in {**shapes, **changed}.items() if shape
        }
        stored["model.seen"] = StoredTensor((), torch.float32)
        values: dict[str, Any] = {"optimizer": {"numbers": {}, "groups": [], "built_groups": []}}

        def read(state):
            for name, tensor in state.tensors.items():
                if name.endswith(".step"):
                    tensor.fill_(float(len(name)))
            state.values |= values

        prepare(world, part).load_state(read, stored)

    def other_model(world, part):
        load(world, part, {"model.bias": (3,), "model.extra": (1,), "model.bottom.bias": None})

    def factored(world, part):
        load(world, part, {"optimizer.bottom.weight.exp_avg_sq_row": (6,)})

    for part in (STAGES[0], CUT):
        words = said(part, other_model, tmp_path)
        assert "missing in the checkpoint: model.bottom.bias" in words
        assert "misshapen: model.bias is [3] in the checkpoint, [2] in the model" in words
        assert "unexpected in the checkpoint: model.extra" in words
        assert "optimizer.bottom.weight.exp_avg_sq_row [6]. Continue with" in said(part, factored, tmp_path)


def test_without_deepspeed_the_fault_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    fault = next(iter(DeepSpeed(stage=2).check(None)))
    assert "pip install 'hydra-runner[deepspeed]'" in fault.message
