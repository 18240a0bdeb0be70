"""The documentation as a site is built strictly, of what the runner reads, and no link of it leads nowhere."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from runner import __version__, errors, protocols
from runner.cli.main import main
from runner.cli.verb import verb_names

CHECKOUT = Path(__file__).parents[2]
CONF = CHECKOUT / "conf"
OPTIONS = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.glob("*/*.yaml"))
SECTIONS = {name: node for name, node in yaml.safe_load((CONF / "base.yaml").read_text()).items() if name != "defaults"}
OLDER = "0.0.1"


@dataclass
class Page(HTMLParser):
    """The text of each section of a page, what can be linked to, and where its links lead."""

    sections: dict[str, str] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {value for name in ("id", "name") if (value := values.get(name))}
        self.links += [value for name in ("href", "src") if (value := values.get(name))]
        if tag == "section":
            self.inside.append(values.get("id") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "section":
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        for section in self.inside:
            self.sections[section] = self.sections.get(section, "") + data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does, where there is no git, beside an older version."""
    directory = tmp_path_factory.mktemp("site")
    (directory / OLDER).mkdir()
    (directory / OLDER / "index.html").touch()
    strict = re.search(
        r"^SPHINX := \S+ (-m sphinx .+) --doctree-dir", (CHECKOUT / "Makefile").read_text(), re.MULTILINE
    )
    assert strict is not None
    assert {"--fail-on-warning", "--nitpicky"} <= {*strict[1].split()}
    where = ["--doctree-dir", str(directory / "doctrees"), str(CHECKOUT / "docs"), str(directory / __version__)]
    built = subprocess.run(
        [sys.executable, *strict[1].split(), "--quiet", *where],
        cwd=directory,
        env={**os.environ, "PATH": "/nowhere", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return directory


@pytest.fixture(scope="module")
def pages(site: Path) -> Mapping[str, Page]:
    """Every page by its path in this version."""
    found = {}
    for path in (site / __version__).rglob("*.html"):
        page = Page()
        page.feed(path.read_text())
        found[path.relative_to(site / __version__).as_posix()] = page
    return found


def keys(node: Mapping[str, Any]) -> Iterator[str]:
    """The dotted keys of a file; those of a value that is a mapping itself, down to the first."""
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from (f"{name}.{key}" for key in keys(value))
        else:
            yield name


@pytest.mark.parametrize("option", OPTIONS)
def test_every_key_of_every_option_is_there(pages: Mapping[str, Page], option: str) -> None:
    group, _, name = option.partition("/")
    text = (CONF / f"{option}.yaml").read_text()
    package = found[1] if (found := re.search(r"^# @package (\S+)", text)) else group
    shown = pages[f"reference/options/{group}.html"].sections[f"{group}-{name}".replace("_", "-")]
    for key in keys(yaml.safe_load(text)):
        assert key == "_target_" or f"{package}.{key} = " in shown, key


def test_every_key_of_every_section_is_there(pages: Mapping[str, Page]) -> None:
    shown = pages["reference/options/sections.html"].sections["sections"]
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    missing = [key for key in keys(SECTIONS) if key not in groups and f"{key} = " not in shown]
    assert missing == []
    assert "batch.items = null · a whole number or null, at least 1" in shown


@pytest.mark.parametrize("verb", verb_names())
def test_every_flag_of_every_command_is_there(
    pages: Mapping[str, Page], capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert main([verb, "--help"]) == 0
    printed = capsys.readouterr().out
    shown = pages["reference/commands.html"].sections[f"command-{verb}"]
    flags = set(re.findall(r"^  (?:-\w+(?: \S+)?, )?(--[\w-]+)", printed, re.MULTILINE)) - {"--help"}
    assert sorted(flag for flag in flags if flag not in shown) == []


@pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if isinstance(kind, type)])
def test_every_error_is_there_with_its_exit_code(pages: Mapping[str, Page], kind: type[Any]) -> None:
    page = pages["reference/errors.html"]
    assert f"runner.errors.{kind.__name__}" in page.ids or kind.__module__ != errors.__name__
    if issubclass(kind, errors.RunnerError):
        assert f"Exit code{kind().exit_code}" in page.sections[f"error-{kind.__name__.lower()}"]


def test_messages_of_errors_are_there(pages: Mapping[str, Page]) -> None:
    """As somebody searches for them."""
    shown = pages["reference/errors.html"].sections
    assert "… cannot be saved: the name is not printable. Rename the parameter." in shown["error-checkpointerror"]
    assert "bf16 needs bfloat16, which this hardware does not support." in shown["error-specerror"]


def test_every_protocol_is_there(pages: Mapping[str, Page]) -> None:
    seams = {name for name in protocols.__all__ if isinstance(vars(protocols)[name], type)}
    documented = {name.rpartition(".")[2] for page in pages.values() for name in page.ids if name.startswith("runner.")}
    assert sorted(seams - documented) == []
    assert {"forward_backward", "update", "place", "prepare", "open", "train", "compose"} <= documented


def test_no_link_leads_nowhere(site: Path, pages: Mapping[str, Page]) -> None:
    broken = []
    for name, page in pages.items():
        here = (site / __version__ / name).parent
        for link in page.links:
            path, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            target = (here / unquote(path.partition("?")[0])).resolve() if path else site / __version__ / name
            inside = target.relative_to(site.resolve() / __version__).as_posix() if __version__ in target.parts else ""
            if not target.is_file() or (anchor and inside in pages and unquote(anchor) not in pages[inside].ids):
                broken.append(f"{name}: {link}")
    assert broken == []


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """A page that is opened from a disk, without a network, has its styles, scripts and search."""
    loads = re.compile(r"<(?:script|img|link rel=\"stylesheet\")[^>]*(?:src|href)=\"(?:https?:)?//")
    assert [path.name for path in site.rglob("*.html") if loads.search(path.read_text())] == []
    index = (site / __version__ / "searchindex.js").read_text()
    assert index.startswith("Search.setIndex(")
    assert "warmup_steps (linear)" in index, "a part of a key's name leads to the key"


def test_versions_are_beside_each_other(site: Path, pages: Mapping[str, Page]) -> None:
    listed = (site / "versions.js").read_text()
    assert listed.index(f'"{__version__}"') < listed.index(f'"{OLDER}"')
    assert f"url={__version__}/index.html" in (site / "index.html").read_text()
    for page in pages.values():
        assert any(link.endswith("../versions.js") for link in page.links)


def test_drawings_are_in_the_page_and_have_words(site: Path) -> None:
    shown = (site / __version__ / "concepts.html").read_text()
    assert shown.count('<svg role="img" aria-label="') == 2
    assert "prefers-color-scheme" not in shown.partition("<article")[2]
