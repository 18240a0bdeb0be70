"""`runner schema` writes files and says how an editor finds them; what it cannot read is told, all of it at once."""

import json
from collections.abc import Callable
from pathlib import Path

Runner = Callable[..., tuple[int, str, str]]


def test_the_schemas_are_written_and_the_ways_to_use_them_told(runner: Runner, project: Path) -> None:
    code, out, err = runner("schema")
    assert (code, err) == (0, "")
    assert "# yaml-language-server: $schema=../.runner/schema/recipe.json" in out
    settings = json.loads(out[out.index("{") :])["yaml.schemas"]
    assert settings[".runner/schema/recipe.json"] == ["recipes/**/*.yaml"]
    assert settings[".runner/schema/launch.json"] == ["conf/launch/*.yaml"]
    assert all((project / name).is_file() for name in settings)
    own = json.loads((project / ".runner" / "schema" / "launch" / "noted.json").read_text())
    assert own["then"]["properties"]["fail"]["default"] == ""


def test_another_directory_is_named_from_where_the_files_are(runner: Runner, project: Path) -> None:
    out = runner("schema", "--output", "editor/schemas")[1]
    assert "$schema=../editor/schemas/recipe.json" in out
    assert (project / "editor" / "schemas" / "optimizer" / "adamw.json").is_file()
    assert runner("schema", "-o", "editor/schemas")[0] == 0


def test_all_that_cannot_be_read_is_told(runner: Runner, project: Path) -> None:
    (project / "recipes" / "torn.yaml").write_text("name: [\n")
    (project / "conf" / "launch" / "odd.yaml").write_text("_target_: no_such_module.Odd\n")
    code, out, err = runner("schema")
    assert (code, out) == (2, "")
    assert "torn: line 2, column 1 is not YAML" in err
    assert "launch/odd: no_such_module.Odd cannot be imported: there is no module 'no_such_module'." in err
    assert "from conf/launch/odd.yaml\n" in err
    assert not (project / ".runner").exists()


def test_a_directory_that_cannot_be_written_is_told(runner: Runner, project: Path) -> None:
    (project / "taken").write_text("a file")
    code, _, err = runner("schema", "-o", "taken/schemas")
    assert code == 2
    assert "--output: taken/schemas cannot be written: Not a directory. Choose another directory." in err


def test_the_line_for_an_editor_is_not_what_a_recipe_is_about(runner: Runner, project: Path) -> None:
    recipe = project / "recipes" / "tiny.yaml"
    recipe.write_text(f"# yaml-language-server: $schema=../.runner/schema/recipe.json\n{recipe.read_text()}")
    assert next(line for line in runner("recipes")[1].splitlines() if line.startswith("tiny")).endswith("noise.")
    assert runner("check", "tiny")[0] == 0
