"""Recipes are found by name or path, the user's before the shipped ones."""

from pathlib import Path

import pytest

from runner.composition.find_recipe import find
from runner.composition.recipe import Recipe, import_roots, options, recipe_files, search_path, shipped_root
from runner.errors import SpecError


def test_a_name_and_a_path_reach_the_same_file(project: Path) -> None:
    assert find("tiny") == find("recipes/tiny.yaml") == Recipe(project / "recipes" / "tiny.yaml")


def test_a_recipe_in_a_folder_has_the_folder_in_its_name(project: Path) -> None:
    (project / "recipes" / "wide").mkdir()
    (project / "recipes" / "wide" / "tiny.yaml").write_text("name: wide")
    assert find("wide/tiny").root == project


def test_the_users_recipe_hides_the_shipped_one_of_its_name(project: Path) -> None:
    for name, path in recipe_files().items():
        (project / "recipes" / f"{name}.yaml").write_text("name: mine")
        assert find(name).path == project / "recipes" / f"{name}.yaml" != path or name == "tiny"


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("tniy", "there is no recipe 'tniy'. Did you mean tiny?"),
        ("recipes/tniy.yaml", "there is no file recipes/tniy.yaml. Did you mean tiny?"),
        ("zzz", "Available: .*tiny.*Or give the path of a .yaml file"),
    ],
)
def test_a_recipe_that_is_not_there_names_the_nearest(project: Path, argument: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        find(argument)


def test_the_search_goes_from_the_working_directory_to_the_recipes_root_to_what_is_shipped(project: Path) -> None:
    for folder in ("conf", "elsewhere/conf", "elsewhere/recipes"):
        (project / folder).mkdir(parents=True)
    (project / "elsewhere" / "recipes" / "far.yaml").write_text("name: far")
    recipe = find("elsewhere/recipes/far.yaml")
    shipped = shipped_root()
    assert search_path(recipe) == [
        project / "conf",
        project / "recipes",
        project / "elsewhere" / "conf",
        *(path for path in (shipped / "recipes", shipped / "conf") if path.is_dir()),
    ]
    assert import_roots(recipe) == [str(project), str(project / "elsewhere"), str(shipped)]


def test_options_are_listed_by_folder(project: Path) -> None:
    (project / "conf" / "optimizer").mkdir(parents=True)
    (project / "conf" / "optimizer" / "mine.yaml").touch()
    assert set(options([shipped_root() / "conf", project / "conf"])["optimizer"]) >= {"adamw", "mine", "sgd"}
