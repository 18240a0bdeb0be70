"""What the ZeRO stages promise on real ranks: who holds how much, the same start, offload, and words for bad input."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from runner import Loss
from runner.errors import CheckpointError, ModelError, NonFiniteError, SpecError
from runner.precision.bf16 import BF16
from runner.precision.fp32 import FP32
from runner.protocols import Clip, MicroBatch, StoredTensor, World
from runner.storage.names import from_names
from runner.strategy.deepspeed import DeepSpeed
from runner.strategy.deepspeed.deepspeed import Place
from runner.strategy.single import Single
from runner.world.solo import SoloWorld
from tests.conftest import Ended
from tests.strategy.ranks import model_of, named, on_ranks
from tests.strategy.small_tower import X, micro_batches_of, prepare, seeded_model

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed")
builds = pytest.mark.skipif(
    shutil.which("g++") is None or not Path("/usr/include/libaio.h").exists(),
    reason="needs g++ and libaio-dev to compile DeepSpeed's operators",
)
F32 = 4
SMALL = {"reduce_bucket_size": 1000, "allgather_bucket_size": 1000, "prefetch_bucket_size": 100}
CUT = DeepSpeed(stage=3, param_persistence_threshold=0, **SMALL)
STAGES = [DeepSpeed(stage=1, **SMALL), DeepSpeed(stage=2, **SMALL), CUT]


def step(trainable: Any, world: Any) -> Any:
    trainable.forward_backward(micro_batches_of(world, 2))
    return trainable.update(measure=True).grad_norm.item()


def elements(tensors: Any) -> Any:
    """What this rank holds of each tensor: (offsets, values) of its boxes; whole tensors as one."""
    found = {}
    for name, tensor in tensors.items():
        if hasattr(tensor, "__create_chunk_list__"):
            chunks = tensor.__create_chunk_list__()
            found[name] = [(tuple(c.offsets), tensor.__get_tensor_shard__(_At(c.offsets)).clone()) for c in chunks]
        else:
            found[name] = [((0,) * tensor.ndim, tensor.clone())]
    return found


class _At:
    def __init__(self, offset: Any) -> None:
        self.offset = offset


def together(of_ranks: Any, like: Any) -> Any:
    """Whole tensors of what the ranks hold; NaN where nobody holds an element."""
    whole = {name: torch.full_like(tensor, torch.nan) for name, tensor in like.items()}
    for held in of_ranks:
        for name in whole:
            for offsets, values in held[name]:
                place = tuple(slice(o, o + n) for o, n in zip(offsets, values.shape, strict=True))
                whole[name][place] = values
    return whole


# ── Memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def held(world: Any, part: Any) -> Any:
    """Bytes on this rank after a step: weights as the forward finds them, the optimizer's, and its state."""
    trainable = prepare(world, part)
    step(trainable, world)
    zero = trainable._engine.optimizer
    model = list(model_of(trainable).parameters())
    weights = sum((p.ds_tensor if hasattr(p, "ds_tensor") else p).numel() * F32 for p in model)
    gathered = sum(p.numel() * F32 for p in model if hasattr(p, "ds_tensor"))
    owners = list(zero.optimizer.state)
    state = sum(t.numel() * F32 for kept in zero.optimizer.state.values() for t in kept.values() if t.ndim)
    gradients = sum(p.grad is not None for p in [*model, *owners])
    return weights, gathered, sum(owner.numel() * F32 for owner in owners), state, gradients


def test_each_rank_holds_its_share_of_what_the_stage_cuts(tmp_path: Path) -> None:
    sizes = [parameter.numel() for parameter in seeded_model().parameters()]
    row = -(-sum(sizes) // 4) * 4 // 2  # all parameters end to end, made a multiple of 2 × ranks, halved
    pieces = sum(-(-size // 2) for size in sizes)  # each parameter halved, rounded up
    for part in STAGES:
        for found in on_ranks(2, held, part, scratch=tmp_path):
            cut = part.stage == 3
            own = F32 * (pieces if cut else row)
            assert found == (F32 * (pieces if cut else sum(sizes)), 0, own, 2 * own, 0)


# ── The same start, the same steps ──────────────────────────────────────────────────────────────────────────────────


def held_at_first(world: Any, part: Any, precision: Any) -> Any:
    return elements(named(prepare(world, part, precision=precision)))


@pytest.mark.parametrize("precision", [FP32(), pytest.param(BF16(), marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("part", [*STAGES, DeepSpeed(stage=3, zero_init=True)])
def test_a_run_begins_with_the_weights_that_the_hook_makes(part: Any, precision: Any, tmp_path: Path) -> None:
    """To the bit, in bfloat16 too, where DeepSpeed alone would round them."""
    expected = seeded_model().state_dict()
    expected = {f"model.{name}": tensor for name, tensor in expected.items() if name != "top.weight"}  # tied
    whole = together(on_ranks(2, held_at_first, part, precision, scratch=tmp_path), expected)
    assert all(torch.equal(whole[name], tensor) for name, tensor in expected.items())


def norms(world: Any, part: Any, clip: Any) -> Any:
    trainable = prepare(world, part, clip=clip)
    found = [step(trainable, world) for _ in range(3)]
    weighed = [loss.value.item() for loss in trainable.evaluate([MicroBatch(X, len(X))])]
    assert all(module.training for module in model_of(trainable).modules())
    return found, weighed, elements(named(trainable))


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
def test_no_setting_changes_what_is_computed(part: Any, tmp_path: Path) -> None:
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
def test_deepspeeds_own_adam_takes_the_settings_of_the_recipe(part: Any, tmp_path: Path) -> None:
    expected, *_ = norms(SoloWorld(torch.device("cpu")), Single(), Clip())
    for found, *_ in on_ranks(2, norms, part, Clip(), scratch=tmp_path, timeout_s=800):
        assert found == pytest.approx(expected, rel=1e-4)  # a vectorised kernel with approximate square roots


@builds
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_a_run_whose_optimizer_is_on_a_disk_is_saved_and_continued(
    runner: Callable[..., Ended], tmp_path: Path
) -> None:
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


def test_one_process_trains_with_one_stage_after_the_other(runner: Callable[..., Ended]) -> None:
    """A sweep in one process: DeepSpeed keeps groups and engines in globals of its own."""
    swept = runner(
        "train", "points", "-m", "strategy=deepspeed_zero2,deepspeed_zero3", "sweep.dir=swept", timeout_s=120
    )
    assert "deepspeed_zero3" in swept.stdout


def test_what_deepspeed_says_goes_to_the_log(runner: Callable[..., Ended]) -> None:
    ended = runner("train", "points", "strategy=deepspeed_zero1", "run.steps=1")
    assert ended.stdout.strip().splitlines() == [str(ended.run_dir.path)]
    _, _, *said = ended.stderr.splitlines()  # after what the run is about to do, and its directory
    assert "deepspeed" not in "\n".join(said).lower()


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
def test_what_a_model_hook_says_is_said_once_on_the_terminal_and_once_in_the_log(
    options: list[str], project: Path, runner: Callable[..., Ended]
) -> None:
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


def refused(world: Any, part: Any, how: Any) -> Any:
    """The words of the error that `how` leads to."""
    try:
        how(world, part)
    except (ModelError, NonFiniteError, CheckpointError, SpecError) as error:
        return str(error)
    return "nothing was refused"


def said(part: Any, how: Any, tmp_path: Path) -> Any:
    first, *others = on_ranks(2, refused, part, how, scratch=tmp_path)
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize(
    "part",
    [
        *(pytest.param(part, id=f"stage {part.stage}") for part in STAGES),
        *(pytest.param(part, id=name, marks=pytest.mark.exhaustive) for name, part in VARIANTS.items()),
    ],
)
def test_a_gradient_that_is_not_finite_is_noticed_and_can_be_discarded(part: Any, tmp_path: Path) -> None:
    """After it, training goes on as if that step had not been taken: the same norms to the last bit."""

    def norms_with_spoilt_steps(world: Any, part: Any, spoilt: Any) -> Any:
        factor = [1.0]
        loss = lambda model, batch: Loss((model(batch).square().sum() * factor[0]), len(batch))  # noqa: E731
        trainable = prepare(world, part, loss=loss)
        trainable.discard()  # nothing is there yet
        norms = []
        for number in range(4):
            if number in spoilt:
                factor[0] = float("nan")
                trainable.forward_backward(micro_batches_of(world, 2))
                assert not trainable.gradients_finite()
                trainable.discard()
                factor[0] = 1.0
            trainable.forward_backward(micro_batches_of(world, 2))
            assert trainable.gradients_finite()
            update = trainable.update(measure=True)
            assert update.stepped
            norms.append(update.grad_norm.item())
        factor[0] = float("inf")
        trainable.forward_backward(micro_batches_of(world, 2))
        assert not trainable.update(measure=True).stepped
        return norms

    plain = on_ranks(2, norms_with_spoilt_steps, part, (), scratch=tmp_path / "plain", timeout_s=120)
    spoilt = on_ranks(2, norms_with_spoilt_steps, part, (0, 2), scratch=tmp_path / "spoilt", timeout_s=120)
    assert spoilt == plain


class _Initialised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        nn.init.zeros_(self.inner.weight)

    def forward(self, x: Any) -> Any:
        return self.inner(x)


def test_zero_init_refuses_a_write_that_would_be_lost(tmp_path: Path) -> None:
    def late(world: Any, part: Any) -> None:
        prepare(world, part, build=_Initialised)

    words = said(DeepSpeed(stage=3, zero_init=True), late, tmp_path)
    assert "on a parameter of shape [2, 2] after its module was built" in words
    assert "strategy.zero_init=false" in words


def test_leaf_modules_that_the_model_does_not_have(tmp_path: Path) -> None:
    part = DeepSpeed(stage=3, moe_leaf_modules=["Experts"])
    words = said(part, prepare, tmp_path)
    rule = "strategy.moe_leaf_modules: ['Experts'] are not classes of modules of this model. It has: "
    assert rule in words
    assert "Block" in words.partition(rule)[2]


class _Described:
    """A checkpoint of which only names and shapes are ever asked."""

    def __init__(self, stored: Any) -> None:
        self.stored = stored


def test_a_checkpoint_that_does_not_fit_is_named_whole(tmp_path: Path) -> None:
    shapes = {f"model.{name}": tensor.shape for name, tensor in seeded_model().state_dict().items()}
    shapes.pop("model.top.weight")

    def load(world: Any, part: Any, changed: Any) -> None:
        stored = {
            name: StoredTensor(tuple(shape), torch.float32) for name, shape in {**shapes, **changed}.items() if shape
        }
        stored["model.seen"] = StoredTensor((), torch.float32)
        prepare(world, part).load_state_dict(_Described(from_names(stored)))

    def other_model(world: Any, part: Any) -> None:
        load(world, part, {"model.bias": (3,), "model.extra": (1,), "model.bottom.bias": None})

    def factored(world: Any, part: Any) -> None:
        load(world, part, {"optimizer.bottom.weight.exp_avg_sq_row": (6,)})

    for part in (STAGES[0], CUT):
        words = said(part, other_model, tmp_path)
        assert "missing in the checkpoint: model.bottom.bias" in words
        assert "misshapen: model.bias is [3] in the checkpoint, [2] in the model" in words
        assert "unexpected in the checkpoint: model.extra" in words
        assert "optimizer.bottom.weight.exp_avg_sq_row [6]. Continue with" in said(part, factored, tmp_path)


def environment_around_a_step(world: World, part: DeepSpeed) -> tuple[dict[str, str], dict[str, str]]:
    before = dict(os.environ)
    step(prepare(world, part), world)
    return before, dict(os.environ)


def test_the_environment_is_as_it_was_before_the_engine_was_built(tmp_path: Path) -> None:
    for part in STAGES:
        for before, after in on_ranks(2, environment_around_a_step, part, scratch=tmp_path):
            assert after == before | {"LOCAL_RANK": after["LOCAL_RANK"]}  # torch's own, which every launcher sets


def test_without_deepspeed_the_fault_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    fault = next(iter(DeepSpeed(stage=2).check(None)))
    assert "pip install 'hydra-runner[deepspeed]'" in fault.message
