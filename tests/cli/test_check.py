"""`runner check` and `runner recipes`: what is wrong, what would run, what there is. No process, no directory."""

from collections.abc import Callable
from pathlib import Path

import pytest


def test_every_fault_at_once_with_where_it_came_from(
    runner: Callable[..., tuple[int, str, str]], project: Path
) -> None:
    recipe = project / "recipes" / "tiny.yaml"
    recipe.write_text(recipe.read_text().replace("run: {steps: 5}", "run: {steps: 5, sed: 1}"))
    code, out, err = runner(
        "check", "tiny", "batch.items=63", "batch.micro_items=8", "optimizer.lr=abc", "precision=fp8x"
    )
    assert (code, out) == (2, "")
    assert "batch.items: 63 is not a multiple of micro_items × data ranks = 8 × 1 = 8. Use 56 or 64." in err
    assert "optimizer.lr: 'abc' must be a number.\n    from the command line" in err
    assert "run.sed: Run has no such key. Did you mean seed?" in err
    line = recipe.read_text().splitlines().index("run: {steps: 5, sed: 1}") + 1
    assert f"    from recipes/tiny.yaml:{line}\n" in err
    assert "precision: there is no option 'fp8x'" in err


def test_a_right_declaration_is_summed_up(runner: Callable[..., tuple[int, str, str]], project: Path) -> None:
    code, out, err = runner("check", "tiny", "batch.micro_items=16", "predict._target_=cli_hooks.loss")
    assert (code, err) == (0, "")
    assert "  loss         cli_hooks.loss\n  predict      cli_hooks.loss\n" in out
    assert "64 items = 16 micro_items × 4 accumulate × 1 data rank (1 process)" in out
    assert "nothing is wrong" in out
    assert not (project / "outputs").exists()


def test_recipes_have_a_line_each(runner: Callable[..., tuple[int, str, str]]) -> None:
    assert "tiny" in runner("recipes")[1]
    assert next(line for line in runner("recipes")[1].splitlines() if line.startswith("tiny")).endswith(
        "A line through noise."
    )


@pytest.mark.parametrize(
    ("called", "means"),
    [
        ("no_shard", "strategy=ddp"),
        ("NO_SHARD", "strategy=ddp"),
        ("deepspeed_zero0", "strategy=ddp"),
        ("FULL_SHARD", "strategy=fsdp"),
        ("hybrid-shard-zero2", "strategy=hsdp_grad_op"),
        ("deepspeed", "strategy=deepspeed_zero1 or strategy=deepspeed_zero2 or strategy=deepspeed_zero3"),
    ],
)
def test_an_option_asked_for_by_another_librarys_name_is_found(
    runner: Callable[..., tuple[int, str, str]], called: str, means: str
) -> None:
    """The one fault: keys given beside it cannot be judged."""
    code, _, said = runner("check", "tiny", f"strategy={called}", "strategy.stage=0")
    assert code == 2
    assert f"strategy: there is no option {called!r}. Its name here is {means}. Available: ddp" in said
    assert "strategy.stage" not in said


def test_an_option_of_ones_own_may_have_other_names_too(
    runner: Callable[..., tuple[int, str, str]], project: Path
) -> None:
    folder = project / "conf" / "strategy"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.yaml").write_text("# Aliases: theirs\n_target_: runner.strategy.single.Single\n")
    said = runner("check", "tiny", "strategy=Theirs")[2]
    assert "Its name here is strategy=mine" in said
