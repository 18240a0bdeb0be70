"""The recipe gpt2_pydoc: transformers' own GPT-2 by its name alone, from training to from_pretrained."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Ended, Zygote
from user_hooks.gpt2_pydoc import BOUNDARY, IGNORED, build_data, collate, windows

transformers = pytest.importorskip("transformers", reason="pip install 'hydra-runner[transformers]'")

OFFLINE = {"HF_HUB_OFFLINE": "1"}
SMALL = ["model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_positions=64", "model.config.n_head=2"]
FEW = [
    "run.steps=4",
    "schedule.warmup_steps=1",
    "batch.items=8",
    "eval.every_steps=null",
    "checkpoint.every_steps=null",
]
TIED = "transformer.wte.weight", "lm_head.weight"


@pytest.fixture
def train(runner: Callable[..., Ended]) -> Any:
    def run(*overrides: Any) -> Any:
        return runner("train", "gpt2_pydoc", *SMALL, *FEW, *overrides, env=OFFLINE, timeout_s=120)

    return run


@pytest.fixture(scope="module")
def whole(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Four steps on one process: trained once, and only read by the tests."""
    path = tmp_path_factory.mktemp("whole")
    argv = ["train", "gpt2_pydoc", *SMALL, *FEW]
    ended = zygote.start(argv, cwd=path, scratch=path, env=OFFLINE).wait(timeout_s=120)
    assert ended.code == 0, ended.stderr
    return ended


@pytest.fixture
def export(runner: Callable[..., Ended], tmp_path_factory: pytest.TempPathFactory) -> Any:
    def run(ended: Any, *options: Any) -> Any:
        out = str(tmp_path_factory.mktemp("export"))
        return runner("export", str(ended.run_dir.path), "--out", out, *options, env=OFFLINE).stdout.splitlines()[-1]

    return run


def held_out(directory: Any, model: Any) -> Any:
    """Mean loss over the bytes of the held-out documents."""
    data = build_data(context=64)
    total = count = 0.0
    with torch.no_grad():
        for start in range(0, len(data.eval), 8):
            batch = collate(data.eval[start : start + 8])
            told = int((batch["labels"][:, 1:] != IGNORED).sum())
            total, count = total + model(**batch).loss.item() * told, count + told
    return total / count


def test_what_was_trained_is_what_from_pretrained_reads(whole: Any, export: Any) -> None:
    """The held-out loss of the run, by its last line, is that of the model which transformers makes of the export."""
    directory = export(whole)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert type(model) is transformers.GPT2LMHeadModel
    assert not any(info.values()), info
    recorded = whole.metrics()[-1]["eval/loss"]
    assert held_out(directory, model) == pytest.approx(recorded, rel=1e-5)  # the same sums, in batches of another size
    assert recorded < math.log(256)  # it learned something


def test_logits_are_bitwise_those_of_the_checkpoint(whole: Any, export: Any) -> None:
    stored = load_file(whole.run_dir.checkpoints / "step_4" / "rank_0.safetensors")
    weights = {name.removeprefix("model."): one for name, one in stored.items() if name.startswith("model.")}
    assert [name in weights for name in TIED] == [True, False]  # tied: once
    exported = transformers.GPT2LMHeadModel.from_pretrained(export(whole))
    assert exported.lm_head.weight is exported.transformer.wte.weight
    built = transformers.GPT2LMHeadModel(exported.config)
    assert built.load_state_dict(weights, strict=False).missing_keys == [TIED[1]]
    batch = collate(build_data(context=64).eval[:4])
    with torch.no_grad():
        assert torch.equal(exported.eval()(**batch).logits, built.eval()(**batch).logits)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_count_bytes_and_not_windows(train: Any, whole: Any, export: Any, strategy: str) -> None:
    """Windows of unequal length over ranks and rounds: the weights are those of one batch on one process (law 4)."""
    alone = load_file(f"{export(whole)}/model.safetensors")
    pair = train(f"strategy={strategy}", "hardware.processes=2", "batch.micro_items=2")
    weights = load_file(f"{export(pair)}/model.safetensors")
    assert weights.keys() == alone.keys()
    assert TIED[1] not in weights
    for name, tensor in alone.items():
        # fp32 sums in another order, through four steps of AdamW at 3e-3, whose first steps are signs of gradients.
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=2e-5)


def test_shards_in_half_precision_are_read_too(whole: Any, export: Any) -> None:
    directory = export(whole, "--dtype", "bfloat16", "--max-shard-size", "20KB")
    model, info = transformers.GPT2LMHeadModel.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == BOUNDARY


def test_a_model_that_a_later_attempt_changed_is_not_described_falsely(
    whole: Any, export: Any, runner: Callable[..., Ended], tmp_path: Path
) -> None:
    run = shutil.copytree(whole.run_dir.path, tmp_path / "run")
    kept = json.loads((run / "model_config.json").read_text())
    kept["shapes"]["transformer.wpe.weight"] = [32, 32]
    (run / "model_config.json").write_text(json.dumps(kept))
    said = runner("export", str(run), env=OFFLINE, code=8).stderr
    assert "model_config.json describes another GPT2LMHeadModel than the one in the checkpoint, which has " in said
    assert "transformer.wpe.weight [64, 32]" in said
    assert said.endswith("Export a checkpoint of that attempt, or leave out config.json: --no-config.\n")
    runner("export", str(run), "--no-config")


def test_a_run_is_resumed_with_its_embeddings_still_tied(
    train: Any, whole: Any, export: Any, runner: Callable[..., Ended]
) -> None:
    stopped = train("run.stop_at_step=2")
    resumed = runner("resume", str(stopped.run_dir.path), env=OFFLINE)
    ours, theirs = (load_file(f"{export(ended)}/model.safetensors") for ended in (resumed, whole))
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


def test_the_recipe_is_good_and_a_misspelled_setting_of_the_model_is_found(runner: Callable[..., Ended]) -> None:
    assert runner("check", "gpt2_pydoc", env=OFFLINE).stdout.endswith("nothing is wrong\n")
    said = runner("check", "gpt2_pydoc", "+model.config.n_layr=3", env=OFFLINE, code=2).stderr
    assert "model.config.n_layr: transformers.GPT2Config(" in said
    assert "does not take 'n_layr'. Did you mean n_layer?" in said


def test_every_byte_of_a_document_is_told_once() -> None:
    text = "abcdefghij"
    cut = windows([text], 5)
    assert [bytes(window.tolist()) for window in cut] == [b"\0abcd", b"defgh", b"hij\0"]
    batch = collate(cut)
    assert batch["labels"].tolist()[2] == [*b"hij\0", IGNORED]
    assert batch["attention_mask"].tolist()[2] == [1, 1, 1, 1, 0]
    assert batch["input_ids"].tolist()[2] == [*b"hij\0", BOUNDARY]
    told = [label for row in batch["labels"][:, 1:].tolist() for label in row if label != IGNORED]
    assert bytes(told) == text.encode() + b"\0"
