"""One composition: the user's files first, every bad override told, every value's source known."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.composition.compose import compose
from runner.composition.find_recipe import find
from runner.composition.recipe import shipped_root
from runner.errors import SpecError


def composed(*overrides: Any, **options: Any) -> Any:
    return compose(find("tiny"), overrides, **options)


def faults(*overrides: Any) -> Any:
    return {fault.key: fault.message for fault in composed(*overrides).faults}


def write(path: Any, text: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_option_then_recipe_then_command_line(project: Path) -> None:
    assert composed().config["optimizer"]["lr"] == 0.05
    assert composed("optimizer=adamw", "optimizer.lr=0.1").config["optimizer"]["lr"] == 0.1
    assert composed("optimizer=adamw").config["optimizer"]["_target_"] == "runner.optimizer.adamw.AdamW"


def test_the_users_option_hides_the_shipped_one(project: Path) -> None:
    write(project / "conf" / "optimizer" / "sgd.yaml", "_target_: mine.SGD\nlr: 1.0\nspecial: 3\n")
    assert composed().config["optimizer"] == {"_target_": "mine.SGD", "lr": 0.05, "special": 3}


def test_two_recipes_in_one_process_do_not_see_each_others_directories(project: Path) -> None:
    write(project / "far" / "recipes" / "far.yaml", (project / "recipes" / "tiny.yaml").read_text())
    write(project / "far" / "conf" / "optimizer" / "odd.yaml", "_target_: odd.Odd\n")
    assert compose(find("far/recipes/far.yaml"), ["optimizer=odd"]).faults == ()
    assert "there is no option 'odd'" in faults("optimizer=odd")["optimizer"]


def test_a_directory_of_the_command_line_is_searched_last(project: Path) -> None:
    write(project / "extra" / "optimizer" / "odd.yaml", "_target_: odd.Odd\n")
    write(project / "extra" / "optimizer" / "sgd.yaml", "_target_: odd.Hidden\n")
    extra = [project / "extra"]
    assert composed("optimizer=odd", config_dirs=extra).config["optimizer"]["_target_"] == "odd.Odd"
    assert composed(config_dirs=extra).config["optimizer"]["_target_"] == "runner.optimizer.sgd.SGD"


def test_hydras_own_search_path_works_from_the_command_line_and_from_the_recipe(project: Path) -> None:
    write(project / "extra" / "optimizer" / "odd.yaml", "_target_: odd.Odd\n")
    where = f"file://{project / 'extra'}"
    assert composed("optimizer=odd", f"hydra.searchpath=[{where}]").config["optimizer"]["_target_"] == "odd.Odd"
    recipe = project / "recipes" / "tiny.yaml"
    recipe.write_text(f"{recipe.read_text()}hydra: {{searchpath: ['{where}']}}\n")
    assert composed("optimizer=odd").config["optimizer"]["_target_"] == "odd.Odd"


def test_several_of_a_kind_stand_under_their_own_names(project: Path) -> None:
    assert list(composed("tracker=[tensorboard,wandb]").config["tracker"]) == ["tensorboard", "wandb"]
    assert composed("tracker=[]").config.get("tracker", {}) == {}


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("modle.width=1", "modle.width", "there is no such key. Did you mean model"),
        ("optimizer.lrr=1", "optimizer.lrr", "Did you mean optimizer.lr? To add a new key, write +optimizer.lrr=1"),
        ("strategy=dpp", "strategy", "there is no option 'dpp'. Did you mean ddp? Available: "),
        ("tracker=[wandb,tensorbord]", "tracker", "there is no option 'tensorbord'. Did you mean tensorboard?"),
        ("strateg=ddp", "strateg", "Did you mean strategy?"),
        ("a=[", "a", "'a=[': "),
        ("optimizer.lr=1,2", "optimizer.lr", "several values make a sweep: add -m"),
        ("~optimizer.lrr", "optimizer.lrr", "there is no such key. Did you mean optimizer.lr?"),
        ("model.width=${oops.x}", "model.width", "cannot be resolved: Interpolation key 'oops.x' not found"),
    ],
)
def test_a_bad_override_is_told_with_the_nearest_name(project: Path, override: str, key: str, words: str) -> None:
    found = faults(override)
    assert list(found) == [key]
    assert words in found[key]


def test_a_section_that_is_referred_to_is_resolved_with_all_that_it_holds(project: Path) -> None:
    found = faults("name=${run}", "run.steps=${oc.env:NOT_SET}")
    assert "'${run}' cannot be resolved: KeyError" in found["name"]
    assert "'${oc.env:NOT_SET}' cannot be resolved: KeyError" in found["run.steps"]


def test_a_name_with_a_dot_whose_value_cannot_be_resolved_is_told(project: Path) -> None:
    recipe = project / "recipes" / "tiny.yaml"
    recipe.write_text(f"{recipe.read_text()}a.b: ${{nothing}}\n")
    assert "'${nothing}' cannot be resolved" in faults()["a.b"]


@pytest.mark.parametrize("group", ["hardware", "strategy", "tracker"])
def test_a_group_that_refers_to_what_is_not_there_is_a_fault(project: Path, group: str) -> None:
    recipe = project / "recipes" / "tiny.yaml"
    recipe.write_text(f"{recipe.read_text()}{group}: ${{nothing}}\n")
    assert "'${nothing}' cannot be resolved" in faults()[group]


def test_a_recipe_without_defaults_is_told_to_begin_with_base(project: Path) -> None:
    (project / "recipes" / "tiny.yaml").write_text("defaults: []\nname: tiny\n")
    with pytest.raises(SpecError, match="defaults: base is not included"):
        composed()


def test_a_value_in_a_list_that_cannot_be_resolved_is_told_with_its_place(project: Path) -> None:
    found = faults("+model.widths=[{first: 1}, {second: ${run.steps}}, {third: ${nothing}}]")
    assert list(found) == ["model.widths.2.third"]
    assert "'${nothing}' cannot be resolved" in found["model.widths.2.third"]


def test_bad_overrides_and_bad_values_are_told_together(project: Path) -> None:
    with pytest.raises(SpecError) as wrong:
        composed("modle.width=1", "strategy=dpp", "a=[", "run.steps=abc", "batch.items=-1").read()
    assert {fault.key for fault in wrong.value.faults} >= {"modle.width", "strategy", "a", "run.steps", "batch.items"}


def test_a_recipe_that_cannot_be_composed_is_named(project: Path) -> None:
    recipe = project / "recipes" / "tiny.yaml"
    recipe.write_text(recipe.read_text().replace("optimizer: sgd", "optimizer: sgdd"))
    with pytest.raises(SpecError, match="recipe: there is no option 'sgdd' in the group optimizer") as wrong:
        composed("a=[")
    assert [fault.key for fault in wrong.value.faults] == ["a", "recipe"]
    assert wrong.value.faults[1].origin == "recipes/tiny.yaml:4"


def test_every_value_knows_its_file_or_the_command_line(project: Path) -> None:
    origin = composed("strategy=ddp", "run.steps=7", "tracker=[tensorboard]").origins.origin
    conf = shipped_root() / "conf"
    assert origin("run.steps") == "the command line"
    assert origin("optimizer.lr") == "recipes/tiny.yaml:12"
    assert origin("optimizer") == "recipes/tiny.yaml:4"
    assert origin("strategy") == "the command line"
    for key, option in {
        "optimizer.momentum": "optimizer/sgd",
        "strategy._target_": "strategy/ddp",
        "tracker.tensorboard._target_": "tracker/tensorboard",
        "run.seed": "base",
    }.items():
        file, _, line = origin(key).rpartition(":")
        assert file == str(conf / f"{option}.yaml")
        assert f"{key.rpartition('.')[2]}:" in Path(file).read_text().splitlines()[int(line) - 1]


def test_another_target_keeps_only_what_is_given_beside_it(project: Path) -> None:
    optimizer = composed("optimizer._target_=torch.optim.RMSprop", "+optimizer.alpha=0.9").config["optimizer"]
    assert optimizer == {"_target_": "torch.optim.RMSprop", "lr": 0.05, "alpha": 0.9}


def test_another_target_in_a_recipe_keeps_only_what_the_recipe_gives(project: Path) -> None:
    recipe = project / "recipes" / "tiny.yaml"
    recipe.write_text(recipe.read_text().replace("{lr: 0.05}", "{_target_: torch.optim.RMSprop, lr: 0.01}"))
    assert composed().config["optimizer"] == {"_target_": "torch.optim.RMSprop", "lr": 0.01}


def test_an_option_that_extends_another_keeps_all_of_both(project: Path) -> None:
    write(project / "conf" / "optimizer" / "fast.yaml", "defaults: [sgd, _self_]\nmomentum: 0.9\n")
    optimizer = composed("optimizer=fast").config["optimizer"]
    assert (optimizer["momentum"], optimizer["nesterov"]) == (0.9, False)


def with_momentum(project: Path, **more: Any) -> None:
    """Let the recipe set what only its own option, sgd, has."""
    recipe = project / "recipes" / "tiny.yaml"
    recipe.write_text(recipe.read_text().replace("{lr: 0.05}", json.dumps({"lr": 0.05, "momentum": 0.9, **more})))


def test_another_option_leaves_out_what_the_recipe_sets_for_its_own(project: Path) -> None:
    with_momentum(project)
    changed = composed("optimizer=adamw")
    assert changed.config["optimizer"] == {**adamw(), "lr": 0.05}
    left_out = "optimizer=adamw has no momentum, which recipes/tiny.yaml:12 sets for sgd"
    assert [str(one) for one in changed.left_out] == [left_out]
    assert composed().left_out == ()
    assert composed("optimizer=sgd").config["optimizer"]["momentum"] == 0.9


def adamw() -> Any:
    return yaml.safe_load((shipped_root() / "conf" / "optimizer" / "adamw.yaml").read_text())


def test_so_does_the_option_of_a_recipe_that_builds_on_it(project: Path) -> None:
    with_momentum(project)
    child = "defaults: [tiny, override /optimizer: adamw, _self_]\noptimizer: {betas: [0.8, 0.9]}\n"
    write(project / "recipes" / "child.yaml", child)
    found = compose(find("child"), [])
    assert found.config["optimizer"] == {**adamw(), "lr": 0.05, "betas": [0.8, 0.9]}
    assert [one.key for one in found.left_out] == ["optimizer.momentum"]
    back = compose(find("child"), ["optimizer=sgd"])
    assert back.config["optimizer"]["momentum"] == 0.9
    assert [(one.key, one.other) for one in back.left_out] == [("optimizer.betas", "adamw")]


def test_keys_of_one_option_among_several_are_left_out_with_it(project: Path) -> None:
    recipe = project / "recipes" / "tiny.yaml"
    chosen = recipe.read_text().replace("  - _self_", "  - override /tracker: [wandb, tensorboard]\n  - _self_")
    recipe.write_text(f"{chosen}tracker: {{wandb: {{project: lines}}}}\n")
    assert composed().config["tracker"]["wandb"]["project"] == "lines"
    for override, others in (("tracker=[]", []), ("tracker=[tensorboard]", ["tensorboard"])):
        found = composed(override)
        assert list(found.config["tracker"]) == others
        assert [str(one) for one in found.left_out] == [
            "tracker has no wandb, which recipes/tiny.yaml:14 sets for tracker=[wandb]"
        ]
    recipe.write_text(recipe.read_text().replace("tracker: {wandb:", "tracker: {wandbs:"))
    assert composed("tracker=[]").config["tracker"] == {"wandbs": {"project": "lines"}}  # for a fault to name it


def test_what_is_set_for_the_option_that_is_chosen_is_not_left_out_though_it_has_no_such_key(project: Path) -> None:
    with_momentum(project, momentums=0.9)
    assert composed().config["optimizer"]["momentums"] == 0.9  # for a fault to name it
    assert composed("optimizer=adamw", "+optimizer.beta=1").config["optimizer"]["beta"] == 1
    child = "defaults: [tiny, override /optimizer: adamw, _self_]\noptimizer: {momentum: 0.8}\n"
    write(project / "recipes" / "child.yaml", child)
    assert compose(find("child"), []).config["optimizer"]["momentum"] == 0.8


def test_an_option_that_extends_another_has_the_keys_of_both(project: Path) -> None:
    with_momentum(project)
    write(project / "conf" / "optimizer" / "fast.yaml", "defaults: [sgd, _self_]\nnesterov: true\n")
    found = composed("optimizer=fast")
    assert (found.config["optimizer"]["momentum"], found.left_out) == (0.9, ())


def test_interpolations_are_resolved_and_hydras_own_are_known(project: Path) -> None:
    config = composed("+model.depth=${model.width}", "+model.job=${hydra:job.name}").config
    assert (config["model"]["depth"], config["model"]["job"]) == (4, "tiny")


def test_the_hydra_directory_is_as_hydra_writes_it(project: Path) -> None:
    composed("run.steps=7", "hydra.verbose=true").write_hydra_dir(project)
    pages = {
        name: yaml.safe_load((project / ".hydra" / f"{name}.yaml").read_text())
        for name in ("config", "hydra", "overrides")
    }
    assert pages["config"]["run"]["steps"] == 7
    assert pages["overrides"] == ["run.steps=7"]
    assert pages["hydra"]["hydra"]["runtime"]["choices"]["optimizer"] == "sgd"
    assert pages["hydra"]["hydra"]["runtime"]["output_dir"] == str(project)
