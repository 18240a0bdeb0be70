"""Declarations as a new user gets them wrong: exit code 2, one fault, its place and the way out; never a traceback."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import runner.worker  # noqa: F401  `train` imports it in a thread, which would go on beside later tests
from runner.cli.main import main

RECIPE = """\
defaults: [base, _self_]
name: tiny
model: {_target_: wrong_hooks.build_model}
data: {_target_: wrong_hooks.load_data}
loss: {_target_: wrong_hooks.loss}
batch: {items: 4}
run: {steps: 2}
"""
HOOKS = """\
def build_model(): ...
def load_data(): ...
def loss(model, batch): ...
"""
CHECKOUT = Path(__file__).parents[2]
Check = Callable[..., list[str]]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "wrong_hooks.py").write_text(HOOKS)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in [name for name in sys.modules if name.startswith("wrong_")]:
        del sys.modules[name]


@pytest.fixture
def check(project: Path, capfd: pytest.CaptureFixture[str]) -> Check:
    """Run `runner check` on a recipe that is written first; the lines on stderr."""

    def run(content: str | bytes = RECIPE, *overrides: str, argument: str = "wrong.yaml") -> list[str]:
        (project / "wrong.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
        return refused("check", argument, *overrides, capfd=capfd)

    return run


def refused(*argv: str, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of a command's error: it must end with 2, and without a traceback."""
    capfd.readouterr()
    code = main(argv)
    said = capfd.readouterr()
    assert (code, said.out) == (2, ""), f"exit code {code}\n{said.out}{said.err}"
    assert "Traceback" not in said.err
    return said.err.splitlines()


@pytest.mark.fault(
    "a recipe with a tab, another encoding, a duplicate key, or values beyond reason", "one fault, with its line"
)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(
            "name: x\noptimizer:\n\tlr: 1\n", "line 3 has a tab where YAML allows only spaces. Replace", id="tab"
        ),
        pytest.param("name: x\nrun: {\tsteps: a: b}\n", "line 2", id="tab in a value"),
        pytest.param(
            b"name: x\n# gr\xfc\xdfe\n", "line 2 is not UTF-8 (byte 0xfc). Save the file as UTF-8.", id="latin-1"
        ),
        pytest.param("name: x\n".encode("utf-16"), "line 1 is not UTF-8 (byte 0xff)", id="utf-16"),
        pytest.param(
            "name: x\nrun: {steps: 1}\nrun: {steps: 2}\n",
            "line 3 gives the key run again (first in line 2). Keep one of the two.",
            id="duplicate key",
        ),
        pytest.param("run: {steps: 1, steps: 2}\n", "gives the key steps again", id="duplicate inner key"),
        pytest.param("name: [x\n", "is not YAML: ", id="open bracket"),
        pytest.param("name: a\x00b\n", "the file is not YAML: ", id="control character"),
        pytest.param("- a\n- b\n", "the file holds a list, but must hold a mapping", id="list"),
        pytest.param("just text\n", "the file holds a single value, 'just text',", id="text"),
        pytest.param("name: !!python/object/apply:os.system [ls]\n", "has a value tagged ", id="tag"),
        pytest.param("? [a, b]\n: c\n", "has a key that is a list or a mapping", id="list as key"),
        pytest.param("a: &a [*a]\n", "", id="alias of itself"),
        pytest.param(
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcde", "bcdef", strict=True)),
            "the file has more than 100000 values",
            id="aliases of aliases",
        ),
        pytest.param("name: " + "[" * 150 + "]" * 150 + "\n", "nested more than 100 deep", id="deep"),
        pytest.param("[" * 100_000, "nested more than 100 deep", id="deep enough to end PyYAML with SIGSEGV"),
        pytest.param("name: 2020-13-99\n", "a value cannot be read", id="no such date"),
        pytest.param("defaults: base\n", "defaults is 'base', but must be a list: defaults: [base", id="no list"),
        pytest.param("defaults: [{'': cosine}]\n", "defaults contains {'': 'cosine'}, but an entry", id="no group"),
        pytest.param("defaults: ['@x']\n", "defaults contains '@x', but an entry", id="no name"),
        pytest.param(f"defaults: [{'x' * 300}]\n", "File name too long", id="a name that no file can have"),
        pytest.param("hydra: null\n", "hydra must be a mapping of Hydra's own settings.", id="hydra"),
        pytest.param(
            "name: x\ndefaults:\n  - base\n  - pkg://team/bert\n",
            "which begins with # @package _global_: runner train pkg://team/bert +experiment=NAME",
            id="an address",
        ),
        pytest.param("defaults: [{a: b, c: d}]\n", "defaults contains {'a': 'b', 'c': 'd'}, but an entry", id="entry"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_fault_with_its_line(check: Check, content: str | bytes, words: str) -> None:
    fault, origin = check(content)
    assert fault.startswith("recipe: ")
    assert words in fault
    named = re.match(r"recipe: line (\d+)", fault)
    assert re.fullmatch(rf"    from wrong\.yaml(:{named[1] if named else '[1-9]'})?", origin)
    assert named is None or origin != "    from wrong.yaml"


def test_the_broken_file_is_named_though_the_recipe_only_includes_it(check: Check, project: Path) -> None:
    option = project / "conf" / "optimizer" / "mine.yaml"
    option.parent.mkdir(parents=True)
    option.write_bytes(b"_target_: torch.optim.SGD\nname: \xe9\n")
    place = f"    from {option.relative_to(project)}:2"
    expected = ["optimizer/mine: line 2 is not UTF-8 (byte 0xe9). Save the file as UTF-8.", place]
    assert check(RECIPE, "optimizer=mine") == expected
    assert check(RECIPE.replace("[base,", "[base, override optimizer: mine,")) == expected


def test_a_broken_file_that_is_not_included_is_nobodys_fault(project: Path) -> None:
    option = project / "conf" / "optimizer" / "adamw.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("\tbroken")
    assert main(["check", "tiny.yaml", "optimizer=sgd"]) == 0


@pytest.mark.fault("files that include each other", "one fault, with the circle")
def test_a_file_that_includes_itself_is_told_with_the_circle(check: Check, project: Path) -> None:
    rule = "Remove one of these entries from its defaults list."
    assert check("defaults: [wrong, _self_]\n")[0] == f"defaults: the file includes itself: wrong → wrong. {rule}"
    (project / "other.yaml").write_text("defaults: [wrong]\n")
    fault, origin = check("defaults: [base, other, _self_]\n")
    assert fault == f"defaults: the file includes itself: wrong → other → wrong. {rule}"
    assert origin == "    from other.yaml:1"


def test_a_file_that_two_others_include_is_no_circle(project: Path) -> None:
    for name, includes in {"left": "[end]", "right": "[end]", "end": "[]"}.items():
        (project / f"{name}.yaml").write_text(f"defaults: {includes}\n")
    (project / "tiny.yaml").write_text(RECIPE.replace("[base,", "[base, left, right,"))
    assert main(["check", "tiny.yaml"]) == 0


@pytest.mark.fault("a recipe without base", "one fault says what is missing")
@pytest.mark.parametrize(
    "content", ["", "name: x\n", "name: x\noptimizer: {lr: 1.0}\n", "defaults: [_self_]\nname: x\n"]
)
def test_a_recipe_without_base_is_one_fault(check: Check, content: str) -> None:
    fault, _ = check(content)
    assert fault.startswith("defaults: base is not included")
    assert fault.endswith("Begin the recipe with defaults: [base, _self_]")


@pytest.mark.parametrize(
    ("defaults", "words"),
    [
        ("[base, override schedule: cosin, _self_]", "no option 'cosin' in the group schedule, which a defaults list"),
        ("[base, override shedule: cosine, _self_]", "'override shedule' overrides nothing"),
        ("[base, {nogroup: x}, _self_]", "no option 'x' in the group nogroup"),
        ("[base, nofile, _self_]", "there is no config file 'nofile'"),
    ],
)
def test_a_name_in_a_defaults_list_that_does_not_exist_is_told_in_one_sentence(
    check: Check, defaults: str, words: str
) -> None:
    fault, origin = check(RECIPE.replace("[base, _self_]", defaults))
    assert words in fault
    assert origin == "    from wrong.yaml:1"
    assert "search path" not in fault.lower()


def test_the_frozen_declaration_of_a_run_says_what_to_type_instead(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = project / "outputs" / "run"
    run.mkdir(parents=True)
    (run / "spec.yaml").write_text(
        "format: 1\nconfig: {name: x}\nimport_roots: []\nsource: {recipe: /some/where/tiny.yaml}\n"
    )
    for verb in ("check", "train"):
        (fault, _) = refused(verb, "outputs/run/spec.yaml", capfd=capfd)
        assert "this is the frozen declaration of a run, not a recipe." in fault
        assert f"To continue it: runner resume {run}." in fault
        assert "runner train /some/where/tiny.yaml" in fault
        (fault,) = refused(verb, "outputs/run", capfd=capfd)
        assert fault.endswith("is the directory of a run, not a recipe. To continue the run: runner resume outputs/run")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("nowhere.yaml", "recipe: there is no file nowhere.yaml."),
        (".", "recipe: . is a directory, not a recipe."),
        ("x" * 300, "recipe: there is no recipe 'xxx"),
        ("x" * 300 + ".yaml", "recipe: there is no file xxx"),
        ("wrong_hooks.py", "recipe: the name of wrong_hooks.py does not end in .yaml"),
        ("digitss", "recipe: there is no recipe 'digitss'. Did you mean digits?"),
    ],
)
def test_what_is_no_recipe_is_told(check: Check, argument: str, words: str) -> None:
    (fault,) = check(argument=argument)
    assert fault.startswith(words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("=3", "command line: '=3' has no key before the =."),
        ("optimizer=null", "optimizer: null is not an option. Available: adamw, sgd."),
        ("tracker=null", "Available: tensorboard, wandb. For none of them, use tracker=[]."),
        ("optimizer=3", "optimizer: there is no option '3'."),
        ("run.steps=", "run.steps: '' must be a whole number."),
        ("run.steps=null", "run.steps: null must be a whole number."),
        ("run=null", "run: null must be a mapping: run.<key>=<value>"),
        (f"optimizer.lr=1{'0' * 400}", "optimizer.lr: 1000"),
        ("clip=null", "clip: null must be a mapping: clip.<key>=<value>"),
        ("name=null", "name: null: must be given"),
        ("batch.items=x", "batch.items: 'x' must be a whole number or null."),
        ("+new.key=1", "new: there is no such section."),
        ("run.steps==3", "run.steps: 'run.steps==3': "),
        ("run.steps=${oops", "run.steps: 'run.steps=${oops': "),
    ],
)  # fmt: skip
def test_an_override_that_is_wrong_is_one_fault(check: Check, override: str, words: str) -> None:
    lines = [line for line in check(RECIPE, override) if not line.startswith("    from ")]
    assert words in lines[0]
    assert len(lines) == 2
    assert lines[1].startswith("The hooks, and the rules between parts, are checked once this is right.")


def test_windows_line_endings_and_a_byte_order_mark_do_no_harm(project: Path) -> None:
    (project / "tiny.yaml").write_bytes(b"\xef\xbb\xbf" + RECIPE.replace("\n", "\r\n").encode())
    assert main(["check", "tiny.yaml"]) == 0


@pytest.mark.parametrize(
    ("hooks", "target", "words"),
    [
        (HOOKS, "wrong_hooks.build_modl", "has no 'build_modl'. Did you mean build_model?"),
        (HOOKS, "wrong_hook.build_model", "there is no module 'wrong_hook'."),
        ("def build_model(:\n", "wrong_hooks.build_model", "SyntaxError"),
        ("x = 1\nx / 0\n", "wrong_hooks.build_model", "wrong_hooks.py, line 2)"),
        ("import nosuchmodule\n", "wrong_hooks.build_model", "imports 'nosuchmodule', which is not installed"),
    ],
)
def test_a_hook_that_cannot_be_imported_names_its_file_and_line(
    check: Check, project: Path, hooks: str, target: str, words: str
) -> None:
    (project / "wrong_hooks.py").write_text(hooks)
    lines = check(RECIPE.replace("wrong_hooks.build_model", target))
    fault = next(line for line in lines if line.startswith("model._target_: "))
    assert words in fault


@pytest.mark.fault("a run's directory that cannot be made", "one fault")
@pytest.mark.parametrize(
    ("directory", "words"),
    [
        ("/proc/x", "run.dir: /proc/x cannot be made: No such file or directory. Name a directory"),
        ("tiny.yaml/x", "cannot be made: a parent of it is a file."),
        ("x" * 300, "cannot be made: File name too long."),
        ("tiny.yaml", "tiny.yaml exists already. Choose another directory"),
        ("", "exists already. Choose another directory"),
    ],
)
def test_a_run_directory_that_cannot_be_made_is_one_fault(
    project: Path, capfd: pytest.CaptureFixture[str], directory: str, words: str
) -> None:
    _, fault = refused("train", "tiny.yaml", f"run.dir={directory}", capfd=capfd)
    assert words in fault


def test_a_place_that_may_not_be_written_is_told(project: Path) -> None:
    """As a user without rights: root may write everywhere."""
    (project / "closed").mkdir(mode=0o555)
    said = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(project / "closed" / "run")],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": str(CHECKOUT)},
    )
    assert "closed/run cannot be made: Permission denied. Name a directory that this user can create" in said.stdout


AS_NOBODY = """
import os, sys
from pathlib import Path
from runner.config.claim import claim_named
from runner.errors import SpecError
if os.getuid() == 0:
    os.setuid(65534)
try:
    claim_named(Path(sys.argv[1]), key="run.dir")
except SpecError as wrong:
    print(wrong)
"""


def test_a_misspelt_key_is_told_without_torch_or_a_hook(project: Path) -> None:
    """In 0.6 to 0.8 s; with torch and hooks, it would take 3 to 6."""
    (project / "wrong_hooks.py").write_text("raise SystemExit('a hook was imported')\n")
    code = (
        "import sys\n"
        "from runner.cli.main import main\n"
        "code = main(['check', 'tiny.yaml', 'optimizer.lrr=1'])\n"
        "print(code, sorted({'torch', 'wrong_hooks'} & set(sys.modules)))\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
        env={"PYTHONPATH": str(CHECKOUT)},
    )  # fmt: skip
    assert said.stdout == "2 []\n"
    assert "optimizer.lrr: there is no such key. Did you mean optimizer.lr?" in said.stderr


def test_a_run_says_what_it_will_do_and_where_before_torch_is_there(project: Path) -> None:
    """The hook is imported only afterwards; here it takes its time."""
    (project / "wrong_hooks.py").write_text("import time\ntime.sleep(60)\n")
    began = time.monotonic()
    run = subprocess.Popen(
        [sys.executable, "-m", "runner", "train", "tiny.yaml"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={"PYTHONPATH": str(CHECKOUT)},
    )
    assert run.stderr is not None
    try:
        about, where = run.stderr.readline(), run.stderr.readline()
        assert time.monotonic() - began < 30
        expected = "tiny: 2 steps of 4 items | 1 process | strategy=single, precision=fp32 | tiny.yaml\n"
        assert about == expected
        directory = Path(where.removeprefix("directory: ").strip())
        assert directory.is_dir()
        assert directory.is_relative_to(project / "outputs" / "tiny")
    finally:
        run.terminate()
        run.wait()
        run.stderr.close()


def test_a_fault_found_later_leaves_no_directory(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "wrong_hooks.py").write_text(HOOKS.replace("model, batch", "model"))
    lines = refused("train", "tiny.yaml", capfd=capfd)
    assert lines[1].startswith(f"directory: {project / 'outputs' / 'tiny'}")
    assert lines[2].startswith("loss._target_: ")
    assert not (project / "outputs").exists()
    refused("train", "tiny.yaml", "run.dir=a/b/c", capfd=capfd)
    assert not (project / "a").exists()
    (project / "a").mkdir()
    refused("train", "tiny.yaml", "run.dir=a/b/c", capfd=capfd)
    assert list((project / "a").iterdir()) == []
