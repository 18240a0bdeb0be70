"""`runner check` and `runner recipes`: what is wrong, what would run, what there is. No process, no directory."""


def test_every_fault_at_once_with_where_it_came_from(runner, project):
    recipe = project / "recipes" / "tiny.yaml"
    recipe.write_text(recipe.read_text().replace("run: {steps: 5}", "run: {steps: 5, sed: 1}"))
    code, out, err = runner(
        "check", "tiny", "batch.items=63", "batch.micro_items=8", "optimizer.lr=abc", "precision=fp8x"
    )
    assert (code, out) == (2, "")
    assert "batch.items: 63 is not a multiple of micro_items × data ranks = 8 × 1 = 8. Use 56 or 64." in err
    assert "optimizer.lr: 'abc' must be a number.\n    from the command line" in err
    assert "run.sed: Run has no such key. Did you mean seed?" in err
    assert f"    from {recipe}" in err
    assert "precision: there is no option 'fp8x'" in err


def test_a_right_declaration_is_summed_up(runner, project):
    code, out, err = runner("check", "tiny", "batch.micro_items=16")
    assert (code, err) == (0, "")
    assert "64 items = 16 micro_items × 4 accumulate × 1 data ranks (1 processes)" in out
    assert "nothing is wrong" in out
    assert not (project / "outputs").exists()


def test_recipes_have_a_line_each(runner):
    assert "tiny" in runner("recipes")[1]
    assert next(line for line in runner("recipes")[1].splitlines() if line.startswith("tiny")).endswith(
        "A line through noise."
    )
