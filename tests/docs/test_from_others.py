"""The pages for those who come from Lightning and from transformers name every argument, and keys that exist."""

import dataclasses
import inspect
import re
from typing import Any

import pytest

from tests.docs.test_commands import CHECKOUT
from tests.docs.test_from_accelerate import CONF, KEY, QUOTED, is_key

ROW = re.compile(r"^\| (`.+?) \| (.+) \|$", re.MULTILINE)
PAGES = {name: (CHECKOUT / "docs" / f"from_{name}.md").read_text() for name in ("lightning", "hf_trainer")}
ROWS = [(page, *row) for page, text in PAGES.items() for row in ROW.findall(text)]
# The arguments of Trainer in Lightning 2.6.
LIGHTNING = """
    accelerator strategy devices num_nodes precision logger callbacks fast_dev_run max_epochs min_epochs max_steps
    min_steps max_time limit_train_batches limit_val_batches limit_test_batches limit_predict_batches overfit_batches
    val_check_interval check_val_every_n_epoch num_sanity_val_steps log_every_n_steps enable_checkpointing
    enable_progress_bar enable_model_summary accumulate_grad_batches gradient_clip_val gradient_clip_algorithm
    deterministic benchmark inference_mode use_distributed_sampler profiler detect_anomaly barebones plugins
    sync_batchnorm reload_dataloaders_every_n_epochs default_root_dir enable_autolog_hparams model_registry
"""


def named(page: str) -> set[str]:
    """What the first columns of a page name."""
    return {quoted for where, first, _ in ROWS if where == page for quoted in QUOTED.findall(first)}


def test_every_argument_of_lightnings_trainer_has_a_row() -> None:
    assert sorted(set(LIGHTNING.split()) - named("lightning")) == []


def test_every_argument_of_transformers_trainer_has_a_row() -> None:
    transformers = pytest.importorskip("transformers")
    arguments = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    arguments |= {*inspect.signature(transformers.Trainer.__init__).parameters} - {"self", "args"}
    assert sorted(arguments - named("hf_trainer")) == []


@pytest.mark.parametrize(("page", "first", "second"), ROWS)
def test_every_key_of_a_row_exists(page: Any, first: Any, second: Any) -> None:
    assert len(second) > 3
    for quoted in QUOTED.findall(second):
        key, equals, value = quoted.partition("=")
        if key.startswith("tracker."):
            key = "tracker." + key.rpartition(".")[2]
        if KEY.match(key) and not key.startswith(("runner.", "torch.")) and not key.endswith("_target_"):
            assert is_key(key, "ddp" if "DDP" in first or "ddp_" in first else "*") or is_strategy_key(key), quoted
        elif equals:
            assert all((CONF / key / f"{option}.yaml").is_file() for option in value.strip("[]").split(",")), quoted


def is_strategy_key(key: str) -> bool:
    """Whether some strategy has the key."""
    return any(is_key(key, path.stem) for path in (CONF / "strategy").glob("*.yaml"))
