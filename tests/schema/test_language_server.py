"""What an editor shows: the real yaml-language-server, given the schemas and files right and wrong."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from runner.composition.recipe import shipped_root
from runner.config.imports import locate
from runner.config.read import KNOWN, SECTIONS
from runner.config.sections import key_names
from tests.schema.language_server import LanguageServer

INSTALLED = Path(sys.prefix) / "yaml-language-server" / "node_modules" / ".bin" / "yaml-language-server"
PROGRAM = str(INSTALLED) if INSTALLED.exists() else shutil.which("yaml-language-server")
MISSING = "node" if shutil.which("node") is None else "yaml-language-server" if PROGRAM is None else ""
RECIPE = "# yaml-language-server: $schema=../.runner/schema/recipe.json\n"
SGD = "defaults:\n  - base\n  - override optimizer: sgd\n  - _self_\n"

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{MISSING} is not installed: scripts/language_server.sh {sys.prefix}/yaml-language-server"
)


@pytest.fixture(scope="module")
def editor(project: Path) -> Iterator[LanguageServer]:
    assert PROGRAM is not None
    server = LanguageServer([PROGRAM, "--stdio"], project)
    yield server
    server.close()


@pytest.mark.parametrize("name", ["digits", "gpt2_pydoc", "pydoc_lm"])
def test_a_right_recipe_has_no_diagnostics(editor: LanguageServer, name: str) -> None:
    text = (shipped_root() / "recipes" / f"{name}.yaml").read_text()
    assert editor.diagnostics(f"recipes/{name}.yaml", RECIPE + text) == []


def test_what_is_wrong_is_told_with_its_line(editor: LanguageServer) -> None:
    keys = "nam: x\noptimizer:\n  betas: [0, 0]\n  lr: fast\nrun:\n  steps: 0\nguard: {non_finite: stopp}\n"
    text = RECIPE + SGD + keys
    assert sorted(editor.diagnostics("recipes/wrong.yaml", text), key=lambda one: int(one.partition(":")[0])) == [
        "6: Property nam is not allowed.",
        "8: Property betas is not allowed.",
        "9: must be a number",
        "11: Value is below the minimum of 1.",
        '12: Value is not accepted. Valid values: "stop", "skip", "ignore".',
    ]


def test_an_option_that_does_not_exist_is_told(editor: LanguageServer) -> None:
    text = f"{RECIPE}defaults:\n  - base\n  - override optimizer: sdg\n  - override optimizr: sgd\n"
    found = editor.diagnostics("recipes/wrong.yaml", text)
    assert any(one.startswith("4: Value is not accepted.") and '"sgd"' in one for one in found)
    assert "5: Property override optimizr is not allowed." in found


def test_the_keys_of_the_chosen_option_are_offered_with_their_meaning(editor: LanguageServer) -> None:
    offered = editor.completions("recipes/new.yaml", f"{RECIPE}{SGD}optimizer:\n  |")
    assert {"lr", "momentum", "nesterov", "_target_"} <= set(offered)
    assert "betas" not in offered
    assert offered["nesterov"].startswith("Use Nesterov momentum")
    assert "betas" in editor.completions("recipes/new.yaml", f"{RECIPE}defaults: [base]\noptimizer:\n  |")


def test_sections_options_and_choices_are_offered(editor: LanguageServer) -> None:
    def offered(text: str) -> set[str]:
        return set(editor.completions("recipes/new.yaml", RECIPE + text))

    assert offered("|") == {*KNOWN, "defaults", "hydra"}
    for section, cls in SECTIONS.items():
        assert offered(f"{section}:\n  |") == set(key_names(cls))
    assert {"constant", "cosine", "linear"} == offered("defaults:\n  - override schedule: |")
    assert {"_self_", "base", "tiny", "override strategy"} <= offered("defaults:\n  - |")
    assert {"stop", "skip", "ignore"} == offered("guard:\n  non_finite: |")
    assert "schema_hooks.build_model" in offered("model:\n  _target_: |")
    assert {"width", "depth"} == offered("model:\n  _target_: schema_hooks.build_model\n  |")
    assert "table" in offered("tracker:\n  |")


@pytest.mark.parametrize("option", sorted((shipped_root() / "conf").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_all_keys_of_an_option_are_offered(editor: LanguageServer, option: Path) -> None:
    target = yaml.safe_load(option.read_text())["_target_"]
    head = f"# yaml-language-server: $schema=../../.runner/schema/{option.parent.name}.json\n_target_: {target}\n"
    offered = editor.completions(f"conf/{option.parent.name}/new.yaml", f"{head}|")
    assert set(offered) == {*key_names(locate(target)), "defaults"}


def test_hovering_shows_what_a_key_means(editor: LanguageServer) -> None:
    assert "Optimizer steps of the whole run" in editor.hover("recipes/new.yaml", f"{RECIPE}run:\n  st|eps: 3\n")


def test_an_option_file_is_completed_by_what_it_names(editor: LanguageServer) -> None:
    head = "# yaml-language-server: $schema=../../.runner/schema/optimizer.json\n"
    name = "conf/optimizer/another.yaml"
    assert "schema_parts.Mine" in editor.completions(name, f"{head}_target_: |")
    assert {"lr", "kind", "inner"} <= set(editor.completions(name, f"{head}_target_: schema_parts.Mine\n|"))
    assert editor.diagnostics(name, f"{head}lr: 1\n") == ['2: Missing property "_target_".']
    assert editor.diagnostics(name, f"{head}_target_: schema_parts.Mine\nlrr: 1\n") == [
        "3: Property lrr is not allowed."
    ]


def test_the_setting_that_is_printed_finds_the_schemas(project: Path) -> None:
    """As VS Code's setting yaml.schemas, without a line in the file."""
    assert PROGRAM is not None
    schemas = {
        (project / ".runner" / "schema" / "recipe.json").as_uri(): ["recipes/**/*.yaml"],
        (project / ".runner" / "schema" / "strategy.json").as_uri(): ["conf/strategy/*.yaml"],
    }
    server = LanguageServer([PROGRAM, "--stdio"], project, {"schemas": schemas})
    try:
        assert server.diagnostics("recipes/deeper/x.yaml", "nam: x\n") == ["1: Property nam is not allowed."]
        text = "_target_: runner.strategy.ddp.DDP\nbucket: 3\n"
        assert server.diagnostics("conf/strategy/x.yaml", text) == ["2: Property bucket is not allowed."]
    finally:
        server.close()
