"""Hooks are found and bound without being called, and called with what the recipe says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.config.hooks import resolve
from runner.config.models import Hook
from runner.errors import HookError


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"model.widht": 1}, "model.widht", "build_model(width=3, depth=1) does not take 'widht'. Did you mean width?"),
        ({"loss.model": 1}, "loss.model", "gets model from the runner"),
        ({"loss._target_": "spec_parts.loss_of_batch"}, "loss._target_", "must take 2 positional arguments first"),
        ({"model._target_": "spec_parts.NUMBER"}, "model._target_", "is a int, which cannot be called"),
        ({"model._target_": "spec_parts.build_modle"}, "model._target_", "Did you mean build_model?"),
        ({"model._target_": "no such"}, "model._target_", "is not a dotted path"),
        ({"model._target_": "???"}, "model._target_", "must be given: the dotted path of a function"),
        ({"model": 3}, "model", "3 is not a hook"),
        ({"model.width": "???"}, "model.width", "must be given"),
        ({"model._partial_": True}, "model._partial_", "the engine calls the hook. Delete it"),
        ({"model.width": {"_target_": "spec_parts.Plainn"}}, "model.width._target_", "Did you mean Plain?"),
        ({"model.width": {"_target_": "spec_parts.loss", "model": 1}}, "model.width.batch", "needs 'batch'"),
        ({"model.width": [{"_target_": "spec_parts.Plain", "_args_": []}]}, "model.width.0._args_", "not supported"),
    ],
)
def test_a_hook_that_cannot_be_called_is_told(
    faults: Callable[[dict[str, Any]], dict[str, str]], changes: Any, key: str, words: str
) -> None:
    found = faults(changes)
    assert list(found) == [key]
    assert words in found[key]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import nothing_like_it", "imports 'nothing_like_it', which is not installed"),
        ("def build(:", "failed with SyntaxError"),
        ("x = 1\ny = 1 / 0", "spec_broken.py, line 2"),
    ],
)
def test_a_module_that_fails_is_told_with_its_error_and_where_it_was_looked_for(
    faults: Callable[[dict[str, Any]], dict[str, str]], parts: Path, source: str, words: str
) -> None:
    (parts / "spec_broken.py").write_text(source)
    message = faults({"model._target_": "spec_broken.build"})["model._target_"]
    assert words in message
    assert f"Looked in {parts}" in message


def test_nested_targets_are_built_before_the_hook_is_called(parts: Path) -> None:
    (parts / "spec_nested.py").write_text(
        "def double(x): return 2 * x\ndef outer(*, inner, make, plain): return inner, make(5), plain"
    )
    arguments = {
        "inner": [{"_target_": "spec_nested.double", "x": {"_target_": "spec_nested.double", "x": 3}}],
        "make": {"_target_": "spec_nested.double", "_partial_": True},
        "plain": {"a": 1},
    }
    hook = resolve(Hook(target="spec_nested.outer", arguments=arguments), [str(parts)])
    assert hook() == ([12], 10, {"a": 1})


def test_a_hook_that_is_gone_when_a_worker_needs_it_is_an_error(parts: Path) -> None:
    with pytest.raises(HookError, match=r"spec_parts\.gone cannot be used: .* has no 'gone'"):
        resolve(Hook(target="spec_parts.gone"), [str(parts)])
