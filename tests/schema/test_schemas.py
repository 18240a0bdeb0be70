"""A schema accepts what the runner reads, and refuses what it refuses: by names, types, choices and ranges."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.composition.recipe import shipped_root

Invalid = Callable[[str, str], list[str]]
CONF = shipped_root() / "conf"
SHIPPED = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.glob("*/*.yaml"))
RECIPES = sorted((shipped_root() / "recipes").rglob("*.yaml"))
BASE = "defaults: [base, _self_]\n"


def test_every_schema_is_one(written: Path, draft7: Any) -> None:
    found = sorted(written.rglob("*.json"))
    assert {f"{option}.json" for option in SHIPPED} <= {path.relative_to(written).as_posix() for path in found}
    for path in found:
        draft7.check_schema(json.loads(path.read_text()))


@pytest.mark.parametrize("path", [*RECIPES, CONF / "base.yaml"], ids=lambda path: path.stem)
def test_what_is_shipped_is_valid(invalid: Invalid, path: Path) -> None:
    assert invalid("recipe", path.read_text()) == []


@pytest.mark.parametrize("option", SHIPPED)
def test_every_option_is_valid_as_itself_and_as_one_of_its_group(invalid: Invalid, option: str) -> None:
    text = (CONF / f"{option}.yaml").read_text()
    assert invalid(option, text) == []
    assert invalid(option.partition("/")[0], text) == []


@pytest.mark.parametrize("option", SHIPPED)
def test_a_key_that_an_option_does_not_have_is_refused(invalid: Invalid, option: str) -> None:
    text = (CONF / f"{option}.yaml").read_text() + "no_such_key: 1\n"
    for schema in (option, option.partition("/")[0]):
        assert any("no_such_key" in one for one in invalid(schema, text)), schema


@pytest.mark.parametrize("option", SHIPPED)
@pytest.mark.parametrize("written_as", ["${other.key}", "before-${oc.env:HOME}", "???"])
def test_an_interpolation_may_stand_for_any_value(invalid: Invalid, option: str, written_as: str) -> None:
    node = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    replaced = {name: value if name == "_target_" else written_as for name, value in node.items()}
    assert invalid(option, yaml.safe_dump(replaced)) == []


def test_an_interpolation_may_stand_for_a_section_and_inside_one(invalid: Invalid) -> None:
    sections = yaml.safe_load((CONF / "base.yaml").read_text())
    text = BASE + "".join(f"{name}: ${{other}}\n" for name in sections if name not in ("defaults", "name"))
    assert invalid("recipe", text) == []
    assert invalid("recipe", f"{BASE}optimizer: {{betas: [0.9, '${{x}}'], groups: '${{y}}', lr: '???'}}\n") == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("nam: x", [": Additional properties are not allowed ('nam' was unexpected)"]),
        ("name: a/b", ["name: "]),
        ("run: {stepz: 1}", ["run: Additional properties are not allowed ('stepz' was unexpected)"]),
        ("run: {steps: 0}", ["run.steps: 0 is less than the minimum of 1"]),
        ("run: {steps: 1.5}", ["run.steps: "]),
        ("run: {steps: many}", ["run.steps: "]),
        ("run: {deterministic: 3}", ["run.deterministic: "]),
        ("run: 3", ["run: "]),
        ("clip: {norm: 0}", ["clip.norm: 0 is less than or equal to the minimum of 0"]),
        ("batch: {micro_items: automatic}", ["batch.micro_items: "]),
        ("guard: {non_finite: stopp}", ["guard.non_finite: "]),
        ("optimizer: {betas: [0.9]}", ["optimizer.betas: [0.9] is too short"]),
        ("optimizer: {momentum: 0.9}", ["optimizer: "]),
        ("strategy: {bucket_mib: 1}", ["strategy: "]),
        ("checkpoint: {keep_last: all, at_end: null}", ["checkpoint.at_end: ", "checkpoint.keep_last: "]),
        ("tracker: {wandb: {projct: x}}", ["tracker.wandb: "]),
        ("model: {_target_: schema_hooks.build_model, widht: 3}", ["model: "]),
        ("model: {_target_: schema_hooks.build_model, _partial_: true}", ["model: "]),
        ("loss: {_target_: schema_hooks.loss, batch: 3}", ["loss: "]),
    ],
)
def test_what_the_runner_refuses_is_refused(invalid: Invalid, text: str, wrong: list[str]) -> None:
    found = invalid("recipe", f"{BASE}{text}\n")
    assert len(found) == len(wrong), found
    assert all(one.startswith(start) for one, start in zip(found, wrong, strict=True)), found


@pytest.mark.parametrize(
    "text",
    [
        "name: 3",
        "run: {steps: '100', dir: 2026, deterministic: 'yes', stop_at_step: null}",
        "batch: {micro_items: auto, items: null}",
        "batch: {micro_items: 8}",
        "clip: {norm: 1e-3}",
        "optimizer: {lr: '1e-3', betas: [0, .9], scale_lr: linear, fused: null}",
        "optimizer: {_target_: torch.optim.RMSprop, alpha: 0.9, no_decay: [bias]}",
        "tracker: {wandb: {project: x}, another: {key: 1}}",
        "model: {_target_: schema_hooks.build_model, width: 8, depth: [1]}",
        "model: {_target_: library.Model, config: {_target_: library.Config, _partial_: true}}",
        "data: {_target_: schema_hooks.load_data, whatever: 1}",
        "loss: {_target_: schema_hooks.loss, smoothing: 0.1}",
        "hydra: {verbose: true}",
        "compile: {mode: null, dynamic: true, what: none}",
    ],
)
def test_what_the_runner_accepts_is_accepted(invalid: Invalid, text: str) -> None:
    assert invalid("recipe", f"{BASE}{text}\n") == []


@pytest.mark.parametrize(
    ("defaults", "keys", "others"),
    [
        ("[base, _self_]", "weight_decay: 0", "momentum: 0"),
        ("[base, override optimizer: sgd, _self_]", "momentum: 0", "betas: [0, 0]"),
        ("[base, override /optimizer: sgd, _self_]", "momentum: 0", "betas: [0, 0]"),
        ("[base, override optimizer: mine, _self_]", "{kind: cold, inner: {deep: 2}}", "momentum: 0"),
        ("[base, override optimizer: heirloom, _self_]", "kind: cold", "momentum: 0"),
        ("[tiny, _self_]", "kind: cold", "betas: [0, 0]"),
        ("[deeper/child, _self_]", "kind: cold", "betas: [0, 0]"),
        ("[tiny, override optimizer: sgd, _self_]", "momentum: 0", "kind: cold"),
    ],
)
def test_the_keys_of_a_group_are_those_of_the_option_that_is_chosen(
    invalid: Invalid, defaults: str, keys: str, others: str
) -> None:
    def node(text: str) -> str:
        return f"defaults: {defaults}\noptimizer: {text if text.startswith('{') else f'{{{text}}}'}\n"

    assert invalid("recipe", node(keys)) == []
    assert len(invalid("recipe", node(others))) == 1


@pytest.mark.parametrize("defaults", ["[base, experiment: short, _self_]", "[base, /elsewhere/file, _self_]"])
def test_where_the_option_is_not_known_any_key_may_be_right(invalid: Invalid, defaults: str) -> None:
    assert invalid("recipe", f"defaults: {defaults}\nschedule: {{anything: 1}}\n") == []


@pytest.mark.parametrize(
    ("entry", "right"),
    [
        ("base", True),
        ("tiny", True),
        ("deeper/child", True),
        ("no_such_recipe", False),
        ("/optimizer/sgd", True),
        ("optional local", True),
        ("{override schedule: linear}", True),
        ("{override schedule: linaer}", False),
        ("{override schedul: linear}", False),
        ("{override /schedule: '${optimizer}'}", True),
        ("{optional experiment: short}", True),
        ("{override tracker: [wandb, table]}", True),
        ("{override tracker: [wandb, tabel]}", False),
        ("{override tracker: null}", True),
        ("{override schedule: null}", False),
        ("{optimizer@elsewhere: sgd}", True),
        ("{nested/group: option}", True),
        ("{override schedule: linear, optimizer: sgd}", False),
        ("3", False),
    ],
)
def test_a_defaults_list_names_what_exists(invalid: Invalid, entry: str, right: bool) -> None:
    assert (invalid("recipe", f"defaults: [base, {entry}, _self_]\n") == []) is right


@pytest.mark.parametrize(
    ("schema", "text", "right"),
    [
        ("optimizer/mine", "_target_: schema_parts.Mine\nlr: 1\n", True),
        ("optimizer/mine", "_target_: schema_parts.Mine\nlr: fast\n", False),
        ("optimizer/mine", "_target_: schema_parts.Mine\nlr: 1\ninner: {deeep: 1}\n", False),
        ("optimizer/mine", "_target_: another.Class\nanything: 1\n", True),
        ("optimizer/mine", "lr: 1\n", False),
        ("optimizer/heirloom", "defaults: [mine, _self_]\nlr: 1\n", True),
        ("optimizer/heirloom", "defaults: [mine, _self_]\nmomentum: 1\n", False),
        ("optimizer/heirloom", "defaults: [mien, _self_]\n", False),
        ("optimizer/theirs", "_target_: collections.OrderedDict\nanything: 1\n", True),
        ("optimizer/theirs", "_target_: collections.OrderedDict\nno_decay: 3\n", False),
        ("optimizer", "_target_: schema_parts.Mine\nlr: 1\n", True),
        ("optimizer", "_target_: runner.optimizer.sgd.SGD\nkind: warm\n", False),
        ("optimizer", "_target_: new.Class\nkind: warm\n", True),
        ("tracker/table", "_target_: schema_parts.Table\nfile: x.csv\n", True),
        ("tracker/table", "_target_: schema_parts.Table\nfiel: x.csv\n", False),
        ("experiment/short", "defaults: [override /schedule: linear]\nrun: {steps: 2}\n", True),
        ("experiment", "run: {stepz: 2}\n", False),
        ("model/wide", "_target_: schema_hooks.build_model\nwidth: 3\n", True),
        ("model", "_target_: schema_hooks.build_model\nwidht: 3\n", False),
        ("batch/large", "items: 10\n", True),
        ("batch", "itms: 10\n", False),
        ("notes/mine", "free: 1\n", True),
    ],
)
def test_options_of_ones_own_have_schemas_too(invalid: Invalid, schema: str, text: str, right: bool) -> None:
    assert (invalid(schema, text) == []) is right


def test_a_key_has_its_meaning_its_choices_and_the_default_of_its_file(written: Path) -> None:
    own = json.loads((written / "optimizer" / "mine.json").read_text())["then"]["properties"]
    assert own["lr"]["description"] == "How fast it learns."
    assert (own["lr"]["default"], own["kind"]["default"]) == (0.5, "warm")
    assert own["kind"]["anyOf"][0] == {"enum": ["warm", "cold"]}
    assert own["kind"]["description"] == "Which kind.\nwarm: Not cold."
    assert own["inner"]["properties"]["deep"]["description"] == "How deep."
    sgd = json.loads((written / "optimizer" / "sgd.json").read_text())["then"]["properties"]
    assert "It must not be negative." in sgd["lr"]["description"]


def test_every_key_of_a_shipped_schema_says_what_it_is(written: Path) -> None:
    for option in SHIPPED:
        schema = json.loads((written / f"{option}.json").read_text())
        silent = [name for name, one in _keys(schema["then"]) if not one.get("description")]
        assert silent == [], option


def _keys(schema: Any) -> Iterator[tuple[str, Any]]:
    for name, one in schema["properties"].items():
        yield name, one
        if "properties" in one:
            yield from _keys(one)
