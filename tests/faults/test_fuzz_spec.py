"""A spec file with any mutation is read as it stands or refused in a sentence, and nothing that it names is executed.

The oracle for the second half is the interpreter's own audit hook. Whoever resumes is asked after any change at all.
"""

import contextlib
import copy
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from runner.cli.main import main
from runner.cli.trust import remember, require_trust
from runner.composition.compose import compose
from runner.composition.recipe import Recipe
from runner.config import store
from runner.config.masking import hidden
from runner.errors import RunnerError
from tests.conftest import CHECKOUT
from tests.faults.strangers_audit import Audit

PLANTED = "planted_module"
TARGETS = [
    "os.system",
    "builtins.eval",
    "subprocess.run",
    "json.codecs.builtins.exec",
    f"{PLANTED}.run",
    "x" * 99,
    "a..b",
]
TAGS = [
    "!!python/object/apply:os.system ['touch executed']",
    "!!python/name:os.system",
    "!!python/object/new:subprocess.Popen [['touch', 'executed']]",
    f"!!python/module:{PLANTED}",
    "!!binary aGVsbG8=",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch executed']",
    "&a [*a, *a]",
    "[" * 300,
    "{? {a: b} : c}",
    "*missing",
    "2001-01-01",
    "0x" + "f" * 99,
    ".inf",
]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["*** from the command line", "*** from ${oc.env:HOME}", "${oc.env:HOME}", "???"]),
    st.sampled_from(TARGETS).map(lambda target: {"_target_": target, "command": "touch executed"}),
    st.sampled_from(TARGETS),
    st.just([[[[]]]]),
    st.just({1: 2, None: 3}),
)
SETTINGS: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "phases": [Phase.generate],
    "print_blob": False,
    "suppress_health_check": list(HealthCheck),
}


@pytest.fixture(scope="module")
def audit() -> Audit:
    return Audit(planted=PLANTED)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run, with a module that only an import could run, and without a checkpoint."""
    path = tmp_path_factory.mktemp("run")
    (path / f"{PLANTED}.py").write_text("def run(**arguments):\n    open('executed', 'w')\n")
    composed = compose(Recipe(CHECKOUT / "recipes" / "pydoc_lm.yaml"), ["tracker=[tensorboard]", "callback=[ema]"])
    stored = store.StoredSpec(
        config=hidden(composed.config),
        import_roots=[str(path), str(CHECKOUT)],
        source=store.Composition(recipe="r.yaml", choices={"optimizer": "adamw"}, search_path=[str(path)]),
    )
    store.save(path / "spec.yaml", stored)
    store.read(path / "spec.yaml")  # this and the next line import what reading needs, before anything is watched
    assert main(["export", str(path)]) == 2
    return path


def keys(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value."""
    inner = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for name, value in inner:
        yield (*above, name)
        yield from keys(value, (*above, name))


def replaced(page: Any, path: tuple[Any, ...], value: Any, *, renamed: str | None) -> Any:
    """A copy of the page with another value at a path, or another key."""
    page = copy.deepcopy(page)
    node = page
    for name in path[:-1]:
        node = node[name]
    if renamed is not None and isinstance(node, dict):
        node[renamed] = node.pop(path[-1])
    else:
        node[path[-1]] = value
    return page


@st.composite
def structures(draw: st.DrawFn, text: str) -> bytes:
    """Another value or another key somewhere, once to three times."""
    page = store.load_yaml(text)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([*keys(page)]))
        renamed = draw(st.one_of(st.none(), st.none(), st.sampled_from(["_target_", "stepz", "hydra", "config"])))
        page = replaced(page, path, draw(LEAVES), renamed=renamed)
    return store.dump_yaml(page).encode()


@st.composite
def lines(draw: st.DrawFn, text: str) -> bytes:
    """A tag or an oddity of YAML in place of a value."""
    found = text.splitlines()
    index = draw(st.integers(0, len(found) - 1))
    found[index] = f"{found[index].partition(':')[0]}: {draw(st.sampled_from(TAGS))}"
    return "\n".join(found).encode()


@st.composite
def damages(draw: st.DrawFn, text: str) -> bytes:
    """Bytes that were flipped, lost, repeated or put in."""
    data = bytearray(text.encode())
    start = draw(st.integers(0, len(data) - 1))
    length = draw(st.integers(1, 64))
    kind = draw(st.sampled_from(["flip", "cut", "end", "repeat", "insert"]))
    if kind == "flip":
        data[start] ^= 1 << draw(st.integers(0, 7))
    elif kind == "cut":
        del data[start : start + length]
    elif kind == "end":
        del data[start:]
    elif kind == "repeat":
        data[start:start] = data[start : start + length]
    else:
        data[start:start] = draw(st.binary(min_size=1, max_size=8))
    return bytes(data)


def check(data: bytes, run: Path, audit: Audit, original: bytes, *, commands: bool) -> None:
    """Each reader ends with a value or a sentence, and the interpreter does nothing that it should not.

    Args:
        commands: also run the two commands that a person would, which takes ten times as long.
    """
    spec = run / "spec.yaml"
    spec.write_bytes(data)
    with audit.watching() as seen:
        _read(store.load, spec)
        if data != original:
            with pytest.raises(RunnerError):
                require_trust(spec, trust=False)
            assert not commands or main(["resume", str(run)]) in (1, 2)
        assert not commands or main(["export", str(run)]) == 2  # there is no checkpoint
    assert seen == []
    with audit.watching() as seen:
        _read(store.read, spec)  # as a rank does, of a run that was accepted: it imports parts, and calls nothing
    sys.modules.pop(PLANTED, None)
    assert [event for event in seen if PLANTED not in event] == []
    assert not Path("executed").exists()


def _read(reader: Callable[[Path], object], spec: Path) -> None:
    with contextlib.suppress(RunnerError):
        reader(spec)


def fuzz(run: Path, audit: Audit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, examples: int) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    original = (run / "spec.yaml").read_bytes()
    remember(run / "spec.yaml")
    text = original.decode()
    tried = 0

    @seed(20261121)
    @settings(max_examples=examples, **SETTINGS)
    @given(st.one_of(structures(text), lines(text), damages(text)))
    def mutate(data: bytes) -> None:
        nonlocal tried
        tried += 1
        check(data, run, audit, original, commands=tried % 10 == 0)

    try:
        mutate()
    finally:
        (run / "spec.yaml").write_bytes(original)
        print(f"{tried} mutations of {len(original)} bytes")
    require_trust(run / "spec.yaml", trust=False)  # the whole file needs no word


@pytest.mark.fault(
    "a spec with any mutation", "read as it stands, or refused in a sentence; nothing that it names is executed"
)
def test_a_mutated_spec_is_read_or_refused_and_executes_nothing(
    run: Path, audit: Audit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fuzz(run, audit, monkeypatch, tmp_path, examples=150)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_so_are_ten_thousand(run: Path, audit: Audit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fuzz(run, audit, monkeypatch, tmp_path, examples=10_000)


def test_the_oracle_hears_what_it_should(audit: Audit) -> None:
    with audit.watching() as seen:
        os.system("true")
    assert [event.partition("(")[0] for event in seen] == ["os.system"]
