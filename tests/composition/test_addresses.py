"""Recipes are found in git repositories and packages; nothing that these bring runs, and a mistake has one fault."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.composition import git_cache
from runner.composition.addresses import git, pkg
from runner.composition.compose import compose
from runner.composition.find_recipe import find, needs_network, visible_recipes
from runner.composition.recipe import import_roots, is_own, search_path
from runner.errors import SpecError

HOOKS = "def build_model(width=3): ...\ndef load_data(): ...\ndef loss(model, batch): ...\n"
RECIPE = """\
# Theirs.
defaults: [common, override /optimizer: mine, _self_]
name: theirs
version: '2.1'
model: {_target_: their_hooks.build_model}
"""
COMMON = """\
defaults: [base, _self_]
data: {_target_: their_hooks.load_data}
loss: {_target_: their_hooks.loss}
batch: {items: 8}
run: {steps: 5}
"""
FILES = {
    "recipes/theirs.yaml": RECIPE,
    "recipes/common.yaml": COMMON,
    "conf/optimizer/mine.yaml": "_target_: runner.optimizer.sgd.SGD\nlr: 0.25\n",
    "their_hooks.py": HOOKS,
}


def write(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory


def run_git(repository: Path, *words: str) -> str:
    identity = ("-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(repository), *identity, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def commit(repository: Path, files: dict[str, str]) -> str:
    write(repository, files)
    run_git(repository, "add", "-A")
    run_git(repository, "commit", "--quiet", "-m", "change")
    return run_git(repository, "rev-parse", "HEAD")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "runner" / "git"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    path.mkdir()
    run_git(path, "init", "--quiet", "--initial-branch=main")
    commit(path, FILES)
    return path


def address(repository: Path, ref: str = "", file: str = "recipes/theirs.yaml") -> str:
    return f"git+file://{repository}{f'@{ref}' if ref else ''}#{file}"


@pytest.mark.parametrize("ref", ["", "v1", "light", "main", "refs/heads/main"])
def test_a_recipe_of_a_repository_comes_with_its_bases_options_and_hooks(
    project: Path, repository: Path, ref: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_git(repository, "tag", "--annotate", "--message=one", "v1")
    run_git(repository, "tag", "light")
    head = run_git(repository, "rev-parse", "HEAD")
    recipe = find(address(repository, ref))
    assert recipe.reference == address(repository, head)
    assert not is_own(recipe)
    assert import_roots(recipe)[:2] == [str(recipe.root), str(project)]  # before the working directory's
    assert search_path(recipe)[0] == recipe.root / "conf"
    config = compose(recipe, []).config
    assert (config["version"], config["optimizer"]["lr"], config["batch"]["items"]) == ("2.1", 0.25, 8)
    assert f"note: fetched file://{repository} at {head[:12]} ({ref or 'HEAD'})\n" in capsys.readouterr().err
    assert find(recipe.reference).path == recipe.path
    assert "fetched" not in capsys.readouterr().err


def test_a_ref_that_moves_is_fetched_again_and_told(
    project: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = find(address(repository, "main"))
    old = run_git(repository, "rev-parse", "HEAD")
    new = commit(repository, {"recipes/theirs.yaml": RECIPE.replace("2.1", "2.2")})
    capsys.readouterr()
    second = find(address(repository, "main"))
    said = capsys.readouterr().err
    assert f"note: main of file://{repository} has moved from {old[:12]} to {new[:12]} since it was last used" in said
    assert "'2.2'" in second.path.read_text()
    assert "'2.1'" in first.path.read_text()  # what was fetched stays as it was
    assert find(address(repository, old)).path == first.path
    assert not first.path.stat().st_mode & 0o222


def test_a_commit_that_is_there_needs_no_repository(project: Path, repository: Path) -> None:
    recipe = find(address(repository))
    repository.rename(repository.with_name("gone"))
    assert find(recipe.reference).path == recipe.path
    with pytest.raises(SpecError, match=r"git cannot read file://.*repository: .*does not appear to be a git repo"):
        find(address(repository))


def test_nothing_that_a_repository_brings_is_run_or_followed(project: Path, repository: Path, tmp_path: Path) -> None:
    """Neither filters that the person's git has, nor links, nor submodules."""
    filters = f'[filter "evil"]\n\tsmudge = touch {tmp_path}/smudged && cat\n\trequired = true\n'
    (tmp_path / "config").write_text(filters)
    (repository / "link.yaml").symlink_to("/etc/hostname")
    modules = '[submodule "inner"]\n\tpath = inner\n\turl = ext::sh -c "touch executed"\n'
    commit(repository, {".gitattributes": "*.py filter=evil\n*.yaml ident eol=crlf\n", ".gitmodules": modules})
    run_git(repository, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},inner")
    run_git(repository, "commit", "--quiet", "-m", "submodule")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
        patch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
        recipe = find(address(repository))
    assert not (tmp_path / "smudged").exists()
    assert recipe.path.read_bytes() == RECIPE.encode()
    assert recipe.tree is not None
    assert (recipe.tree / "their_hooks.py").read_text() == HOOKS
    assert not (recipe.tree / "link.yaml").is_symlink()
    assert not (recipe.tree / ".git").exists()


@pytest.mark.parametrize(
    ("ref", "file", "words"),
    [
        (
            "v88",
            "recipes/theirs.yaml",
            r"has no tag or branch 'v88'. Did you mean v8\? It has: main, v8. A commit is given",
        ),
        (
            "v8",
            "recipes/their.yaml",
            r"has no file 'recipes/their.yaml' at v8 \(\w{12}\). Did you mean recipes/theirs.y",
        ),
        ("0" * 40, "recipes/theirs.yaml", "git cannot read"),
    ],
)
def test_what_is_not_there_is_named(project: Path, repository: Path, ref: str, file: str, words: str) -> None:
    run_git(repository, "tag", "v8")
    with pytest.raises(SpecError, match=words) as raised:
        find(address(repository, ref, file))
    assert len(raised.value.faults) == 1


def test_a_name_of_two_refs_is_asked_about(project: Path, repository: Path) -> None:
    run_git(repository, "tag", "main")
    commit(repository, {"more": ""})
    with pytest.raises(SpecError, match=r"'main' is a tag and a branch.*@refs/tags/main or @refs/heads/main"):
        find(address(repository, "main"))


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("git+http://host/repo#a.yaml", "begin with git.https://, git.ssh:// or git.file://, not http://"),
        ("git+ext::sh -c x://a#a.yaml", "not ext::sh -c x://"),
        ("git+ssh://-oProxyCommand=x/repo#a.yaml", "no host and path that can be passed to git"),
        ("git+ssh://-l@host/repo#a.yaml", "no host and path"),
        ("git+https://-host/repo#a.yaml", "no host and path"),
        ("git+file://elsewhere/repo#a.yaml", "no host and path"),
        ("git+https:///repo#a.yaml", "no host and path"),
        ("git+https://host/re po#a.yaml", "no host and path"),
        ("git+https://host/repo@--upload-pack=x#a.yaml", "'--upload-pack=x' is no name of a tag, a branch or a commit"),
        ("git+https://host/repo@a..b#a.yaml", "'a..b' is no name"),
        ("git+https://host/repo@#a.yaml", "'' is no name"),
        ("git+https://host/repo", "after # stands the path of a .yaml file"),
        ("git+https://host/repo#../a.yaml", "after # stands the path"),
        ("git+https://host/repo#/etc/a.yaml", "after # stands the path"),
        ("git+https://host/repo#a.py", "after # stands the path"),
        ("git+https://me:secret@host/repo#a.yaml", "holds a password, which would be recorded. Let git's credential"),
        (
            "https://host/repo",
            r"is no address of a recipe. Write git\+https://host/repo for a repository. Addresses are",
        ),
        ("hg+https://host/repo", "is no address of a recipe. Addresses are git.*pkg://PACKAGE/NAME"),
    ],
)
def test_an_address_that_is_none_reaches_no_git(
    project: Path, argument: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SpecError, match=words) as raised:
        find(argument)
    assert "secret" not in str(raised.value)


def test_a_whole_address_is_taken_apart() -> None:
    whole = "git+ssh://git@host.example:22/team/x@y/recipes.git@release/1.0#nlp/bert.yaml"
    assert git.parse(whole) == ("ssh://git@host.example:22/team/x@y/recipes.git", "release/1.0", "nlp/bert.yaml")
    assert needs_network(whole)
    assert not needs_network("pkg://team/bert")


def test_git_that_does_not_answer_is_ended_with_what_it_started(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text(f"#!/bin/sh\nsleep 97 &\necho $! > {tmp_path}/child\nwait\n")
    (tmp_path / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(git_cache, "ASK_TIMEOUT_S", 1.0)
    with pytest.raises(SpecError, match="https://host/repo did not answer within 1 s"):
        find("git+https://host/repo#a.yaml")
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split(") ")[1].startswith("Z")


def test_a_cache_that_cannot_be_written_says_what_to_set(
    project: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(SpecError, match=r"cannot be written: .* Set XDG_CACHE_HOME to a place that can"):
        find(address(repository))


def test_bases_in_a_circle_are_one_fault(project: Path, repository: Path) -> None:
    commit(repository, {"recipes/common.yaml": COMMON.replace("base,", "base, theirs,")})
    with pytest.raises(SpecError, match="the file includes itself: theirs → common → theirs") as raised:
        compose(find(address(repository)), [])
    assert len(raised.value.faults) == 1


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of installed packages: two that announce recipes, one of which has none, and one that does not."""
    site = tmp_path / "site"
    write(site, {f"team_recipes/{name}": text for name, text in FILES.items()})
    write(site, {"team_recipes/__init__.py": "raise SystemExit('it was imported')\n", "bare.py": "", "hollow/a.py": ""})
    for name, top, entry in (
        ("team-recipes", "team_recipes", "team = team_recipes"),
        ("hollow", "hollow", "hollow = hollow"),
        ("lost", "lost", "lost = not_there_at_all"),
        ("bare", "bare", ""),
    ):
        points = f"[runner.recipes]\n{entry}\n" if entry else ""
        meta = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n"
        write(
            site / f"{name.replace('-', '_')}-1.2.dist-info",
            {"METADATA": meta, "top_level.txt": top, "entry_points.txt": points},
        )
    monkeypatch.syspath_prepend(str(site))
    yield site
    sys.modules.pop("team_recipes", None)


def test_a_recipe_of_a_package_is_found_and_nothing_is_imported(project: Path, installed: Path) -> None:
    recipe = find("pkg://team/theirs")
    assert recipe.path == installed / "team_recipes" / "recipes" / "theirs.yaml"
    assert (recipe.reference, recipe.origin) == ("pkg://team/theirs", "team-recipes 1.2")
    assert is_own(recipe)  # the person has installed it
    config = compose(recipe, []).config
    assert (config["optimizer"]["lr"], config["batch"]["items"]) == (0.25, 8)
    assert str(installed / "team_recipes") == import_roots(recipe)[0]
    assert "team_recipes" not in sys.modules
    there = {one.name: one.origin for one in visible_recipes()}
    assert there["pkg://team/theirs"] == "team-recipes 1.2"
    assert there["tiny"] == "working directory"
    assert there["digits"] == "comes with the runner"


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("pkg://teem/theirs", "no installed package announces recipes as 'teem'. Did you mean team"),
        ("pkg://teem/theirs", r"Those that do: hollow \(hollow 1.2\), lost \(lost 1.2\), team \(team-recipes 1.2\)"),
        ("pkg://bare/x", "the package 'bare' is installed, but announces no recipes"),
        (
            "pkg://hollow/x",
            "hollow 1.2 announces recipes as 'hollow', but there are none in .*hollow/recipes. Reinstall",
        ),
        ("pkg://lost/x", "there are none in the package not_there_at_all, which cannot be found"),
        ("pkg://team/their", "team-recipes 1.2 has no recipe 'their'. Did you mean theirs.*pkg://team/theirs"),
        ("pkg://team", "pkg://team names no recipe"),
        ("pkg://../../etc", "no installed package announces recipes as '..'"),
    ],
)
def test_what_no_package_has_is_named(project: Path, installed: Path, argument: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as raised:
        find(argument)
    assert len(raised.value.faults) == 1


def test_two_packages_of_one_name_are_asked_about(project: Path, installed: Path) -> None:
    write(
        installed / "other-3.dist-info",
        {
            "METADATA": "Metadata-Version: 2.1\nName: other\nVersion: 3\n",
            "entry_points.txt": "[runner.recipes]\nteam = team_recipes\n",
        },
    )
    with pytest.raises(
        SpecError, match=r"other 3, team-recipes 1.2 all announce recipes as 'team'. Uninstall all but one"
    ):
        find("pkg://team/theirs")


def test_every_kind_says_what_its_addresses_look_like() -> None:
    for kind in (git, pkg):
        assert kind.FORM.startswith(kind.__name__.rpartition(".")[2])
