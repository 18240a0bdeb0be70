"""Each value of a declaration is explained: where it is from, what it replaced, its type, range and meaning."""

import sys
from pathlib import Path
from typing import Any

import pytest

from runner.composition.compose import compose
from runner.composition.explain import Explanation, explain
from runner.composition.find_recipe import find
from runner.errors import SpecError


def explained(key: str | None = None, *overrides: str, recipe: str = "tiny") -> dict[str, Explanation]:
    return {one.key: one for one in explain(compose(find(recipe), overrides), key)}


def one(key: str, *overrides: str, **options: Any) -> Explanation:
    found = explained(key, *overrides, **options)
    assert list(found) == [key]
    return found[key]


def test_every_value_is_explained_once_and_every_group(project: Path) -> None:
    composed = compose(find("tiny"), ["tracker=[tensorboard]"])
    keys = [one.key for one in explain(composed)]
    assert len(keys) == len(set(keys))
    leaves = {key for key in keys if "." in key} | {"name", "version", "models", "phases"}
    assert leaves == {key for key, _ in _leaves(composed.config)}
    assert {"hardware", "optimizer", "tracker", "metric", "callback"} <= set(keys) - leaves


def _leaves(node: Any, above: str = "") -> Any:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def test_a_value_has_its_type_its_range_and_its_meaning(project: Path) -> None:
    lr = one("optimizer.lr")
    assert (lr.value, lr.known.type, lr.known.rule) == (0.05, "a number", "must not be negative")
    assert lr.known.meaning == "Base learning rate, which the schedule multiplies by a factor."
    steps = one("run.steps")
    assert (steps.known.type, steps.known.rule) == ("a whole number", "at least 1")
    assert one("clip.norm").known.rule == "above 0"
    assert one("checkpoint.keep_last").known.rule == "must be at least 1, or null to keep all"
    assert list(one("guard.non_finite").known.choices) == ["stop", "skip", "ignore"]
    assert one("guard.non_finite").known.choices["ignore"] == "The step is applied."
    assert one("name").known.type == "text without a slash"


def test_a_group_has_its_option_and_the_others(project: Path) -> None:
    (project / "conf" / "strategy").mkdir(parents=True)
    (project / "conf" / "strategy" / "mine.yaml").write_text("_target_: runner.strategy.single.Single\n")
    strategy = explained("strategy", "strategy=ddp")["strategy"]
    assert (strategy.value, strategy.is_group) == ("ddp", True)
    assert {"ddp", "single", "fsdp", "mine"} <= set(strategy.known.choices)
    assert one("tracker").value == []
    assert explained("tracker", "tracker=[tensorboard,wandb]")["tracker"].value == ["tensorboard", "wandb"]


def test_what_a_hook_takes_is_read_and_not_imported(project: Path) -> None:
    (project / "compose_hooks.py").write_text(
        'raise SystemExit("imported")\n'
        "def build_model(*, width: int = 3, **more):\n"
        '    """A model.\n\n    Args:\n        width: how wide\n            it is.\n        more: the rest.\n    """\n'
    )
    width = one("model.width")
    assert (width.value, width.known.type, width.known.meaning) == (4, "int", "how wide it is.")
    assert "compose_hooks" not in sys.modules


def test_the_comment_beside_a_value_says_what_nothing_else_says(project: Path) -> None:
    recipe = project / "recipes" / "tiny.yaml"
    recipe.write_text(recipe.read_text().replace(", width: 4}", "}\n  # mine") + "extra: 3   # more\n")
    recipe.write_text(recipe.read_text().replace("extra: 3   # more\n", "sweep:\n  dir: x   # mine\n"))
    assert one("sweep.dir").known.meaning.startswith("The sweep's directory")
    assert one("data._target_").known.meaning == "dotted path of the function; further keys are its arguments"


def test_an_interpolation_is_shown_as_written_and_as_resolved(project: Path) -> None:
    depth = one("model.depth", "+model.depth=${model.width}")
    assert (depth.value, depth.settings[-1].value) == (4, "${model.width}")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("optimzer.lr", "Did you mean optimizer.lr"),
        ("optimizer.lrr", "Did you mean optimizer.lr"),
        ("trackr", "Did you mean tracker"),
        ("zzz", "there is no such key."),
    ],
)
def test_a_key_that_does_not_exist_is_one_fault_with_the_nearest(project: Path, key: str, words: str) -> None:
    with pytest.raises(SpecError) as wrong:
        explained(key)
    assert [fault.key for fault in wrong.value.faults] == [key]
    assert words in wrong.value.faults[0].message


def test_a_key_of_another_option_says_who_sets_it(project: Path) -> None:
    recipe = project / "recipes" / "tiny.yaml"
    recipe.write_text(recipe.read_text().replace("{lr: 0.05}", "{lr: 0.05, momentum: 0.9}"))
    with pytest.raises(SpecError, match=r"optimizer=adamw has no momentum, which recipes/tiny\.yaml:12 sets for sgd"):
        explained("optimizer.momentum", "optimizer=adamw")


def test_overrides_that_cannot_be_applied_are_faults(project: Path) -> None:
    with pytest.raises(SpecError, match="there is no option 'dpp'"):
        explained("run", "strategy=dpp")


def test_a_value_of_the_wrong_type_is_explained_all_the_same(project: Path) -> None:
    assert one("optimizer.lr", "optimizer.lr=abc").value == "abc"


def test_secrets_are_masked_wherever_they_stand(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSN", "from-the-environment")
    recipe = project / "recipes" / "tiny.yaml"
    text = recipe.read_text().replace(
        "build_model, width: 4",
        "build_model, api_key: in-the-recipe, dsn: '${oc.env:DSN}', size: 5, token: [in-a-list]",
    )
    (project / "recipes" / "above.yaml").write_text(text)
    (project / "recipes" / "tiny.yaml").write_text(
        "defaults: [above, _self_]\nmodel: {api_key: in-this-one, dsn: in-plain}   # once from-the-environment\n"
    )
    overrides = ("model.api_key=typed-key", "++model.dsn=${oc.env:DSN}")
    found = explained(None, *overrides)
    key, dsn = found["model.api_key"], found["model.dsn"]
    assert [setting.value for setting in key.settings] == ["***", "***", "***"]
    assert key.settings[-1].override == "model.api_key=***"
    assert [setting.value for setting in dsn.settings] == ["${oc.env:DSN}", "***", "${oc.env:DSN}"]
    assert (key.value, dsn.value, found["model.token"].value) == ("***", "***", ["***"])
    shown = repr(found)
    for secret in ("in-the-recipe", "in-this-one", "in-plain", "typed-key", "from-the-environment", "in-a-list"):
        assert secret not in shown


def test_of_a_strangers_recipe_only_the_runners_own_parts_are_imported(project: Path, tmp_path_factory: Any) -> None:
    far = tmp_path_factory.mktemp("far")
    (far / "conf" / "optimizer").mkdir(parents=True)
    (far / "conf" / "optimizer" / "odd.yaml").write_text("_target_: odd_part.Odd\nlr: 0.5  # how fast\n")
    (far / "odd_part.py").write_text('raise SystemExit("imported")\n')
    (far / "recipes").mkdir()
    text = (
        (project / "recipes" / "tiny.yaml").read_text().replace("override /optimizer: sgd", "override /optimizer: odd")
    )
    (far / "recipes" / "far.yaml").write_text(text.replace("compose_hooks", "odd_part"))
    path = list(sys.path)
    found = explained(recipe=str(far / "recipes" / "far.yaml"))
    assert (found["optimizer.lr"].known.type, found["optimizer.lr"].known.meaning) == ("", "how fast")
    assert found["schedule.warmup_steps"].known.type == "a whole number or text"
    assert "odd_part" not in sys.modules
    assert sys.path == path
