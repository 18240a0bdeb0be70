"""Recipes that are mutated in their bytes and in their structure: a right declaration or a fault, nothing else."""

import contextlib
import copy
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from runner.cli.main import main

CHECKOUT = Path(__file__).parents[2]
RECIPES = [(CHECKOUT / "recipes" / f"{name}.yaml").read_bytes() for name in ("digits", "pydoc_lm")]
ODD_BYTES = [
    b"\t",
    b"\x00",
    b"\xff",
    b"\xe4",
    b"\r\n",
    b"\n",
    b": ",
    b"- ",
    b"[",
    b"}",
    b"&a ",
    b"*a",
    b"!!",
    b"'",
    b"#",
]
ODD_BYTES += [b"${", b"???", b"%", b"|\n", b"<<: ", b"@", b"\xef\xbb\xbf", b"null", b"defaults", b"_target_", b"..."]
ODD_VALUES: list[Any] = [None, True, 0, -1, 10**400, 1.5, float("nan"), float("-inf"), "", "???", "a/b", "${run.steps}"]
ODD_VALUES += [
    "${nothing}",
    "${oc.env:NOT_SET}",
    "${",
    "${run}",
    "null",
    "x" * 500,
    [],
    [1, [2]],
    {},
    {"a": {"b": None}},
]
ODD_VALUES += [{"_target_": "no.such"}, {"_target_": None}, {"_target_": 3}, ["base", "_self_"], {1: 2}, "\t", "\u2028"]
ODD_OVERRIDES = [
    "run.steps=",
    "=",
    "~run",
    "~name",
    "+a.b=1",
    "optimizer=null",
    "strategy=[a,b]",
    "x",
    "~",
    "+",
    "++=1",
]
ODD_OVERRIDES += [
    "optimizer@a=sgd",
    "run.steps={a:1}",
    "hydra.run=null",
    "defaults=[]",
    "run.steps=${run.seed}",
    "a:b=1",
]
ODD_OVERRIDES += [
    "optimizer/x=y",
    "hydra=null",
    "~hydra",
    "tracker=[null]",
    "x" * 3000 + "=1",
    "tracker=[wandb,wandb]",
    "callback=[ema]",
    "model=null",
    "~optimizer.lr",
    "_target_=x",
]


@st.composite
def mutated_bytes(draw: st.DrawFn) -> bytes:
    """A recipe in which up to three ranges of bytes are replaced, dropped or repeated."""
    content = draw(st.sampled_from(RECIPES))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.integers(0, 40)))
        filling = draw(st.one_of(st.sampled_from(ODD_BYTES), st.binary(max_size=4), st.just(content[start:stop] * 2)))
        content = content[:start] + filling + content[stop:]
    return content


@st.composite
def mutated_structure(draw: st.DrawFn) -> bytes:
    """A recipe in which up to three values are replaced, keys dropped or renamed."""
    tree = copy.deepcopy(yaml.safe_load(draw(st.sampled_from(RECIPES))))
    for _ in range(draw(st.integers(1, 3))):
        node, key = draw(st.sampled_from(list(places(tree))))
        match draw(st.sampled_from(["replace", "drop", "rename"])):
            case "replace":
                node[key] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
            case "drop":
                del node[key]
            case "rename" if isinstance(node, dict):
                names = [
                    "",
                    "_target_",
                    "defaults",
                    "hydra",
                    "a.b",
                    "run",
                    3,
                    None,
                    "optimizer",
                    "@x",
                    "_here_",
                    "${a}",
                ]
                node[draw(st.sampled_from(names))] = node.pop(key)
        if not tree:
            break
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode()


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a tree with every key or index that it has."""
    entries = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    for key, value in entries:
        yield node, key
        yield from places(value)


def check(directory: Path, content: bytes, overrides: list[str]) -> None:
    """`runner check` returns 0 or 2, raises nothing, and shows no traceback."""
    (directory / "fuzzed.yaml").write_bytes(content)
    path = list(sys.path)
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        code = main(["check", str(directory / "fuzzed.yaml"), *overrides])
    sys.path[:] = path
    assert code in (0, 2)
    assert err.getvalue() or code == 0
    assert "Traceback" not in err.getvalue()


pytestmark = pytest.mark.filterwarnings("default")  # Hydra warns of a defaults list without _self_
CASES = given(
    content=st.one_of(mutated_bytes(), mutated_structure()),
    overrides=st.one_of(st.just([]), st.lists(st.sampled_from(ODD_OVERRIDES), max_size=2)),
)
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.mark.fault("a recipe with any mutation, with odd overrides", "right, or a fault; never a traceback")
@settings(max_examples=40, deadline=None, suppress_health_check=CHECKS, phases=[Phase.generate], derandomize=True)
@CASES
def test_a_mutated_recipe_is_right_or_a_fault(tmp_path: Path, content: bytes, overrides: list[str]) -> None:
    check(tmp_path, content, overrides)


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@settings(max_examples=10_000, deadline=None, suppress_health_check=CHECKS, database=None)
@CASES
def test_ten_thousand_mutated_recipes_are_right_or_a_fault(
    tmp_path: Path, content: bytes, overrides: list[str]
) -> None:
    check(tmp_path, content, overrides)
