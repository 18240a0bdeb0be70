"""Every command that a page shows is run from an installed wheel, in a directory that has the files of the page alone.

The commands of a page are run in their order, in one shell. What a ```console block shows as output is compared.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.cli.verb import verb_names
from tests.conftest import LIBRARIES, Zygote
from tests.docs.console import Command, commands, script
from tests.installed import Installed

CHECKOUT = Path(__file__).parents[2]
MARKDOWN = sorted([CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")])
FILE = re.compile(r"^`((?:user_hooks|recipes|conf|programs)/[\w/.]+)`:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```(bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SOURCES = re.compile(r"^```(python|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TIMEOUT_S = 300
FORKED = """\
import json, os, socket, sys
script = sys.argv[1] if SCRIPT else None
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect("\\0NAME")
place = {"cwd": os.getcwd(), "env": dict(os.environ), "forks": SCRIPT or "launch=nodes" in sys.argv}
asked = {"script": script, "argv": sys.argv[1 + SCRIPT:], **place}
socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
connection.recv(1024)
code = json.loads(connection.recv(1024))["code"]
sys.exit(code if code >= 0 else 128 - code)
"""
PYTEST = """\
import sys
import pytest
sys.path[0] = ""
known = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins were imported before pytest could rewrite them
sys.exit(pytest.main([*known, *sys.argv[1:]]))
"""
PAGES = [page for page in MARKDOWN if COMMANDS.search(page.read_text())]


def whole_script(text: str) -> tuple[str, list[Command]]:
    """Bash that runs all commands of a page in one shell, and those whose output it says."""
    shown: list[Command] = []
    parts = ["exec 9>&1", "BASH_XTRACEFD=9", "set -xuo pipefail"]  # the trace is no output of a command
    for language, block in COMMANDS.findall(text):
        if language == "bash":
            parts.append(f"set -e\n{block}set +e")
        else:
            parts.append(script(commands(block), number=len(shown)))
            shown += commands(block)
    return "\n".join(parts), shown


def write_executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture(scope="module")
def environment(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables of the shell, in which `runner`, pytest and programs are forks of a process of the environment."""
    told = {"PYTHONUNBUFFERED": "1", "COLUMNS": "120"}  # stdout and stderr in the order of a terminal
    variables = installed.variables() | told
    zygote = Zygote(installed.bin / "python", variables, LIBRARIES)
    shims = tmp_path_factory.mktemp("shims")
    forked = f"#!{sys.executable} -IS\n" + FORKED.replace("NAME", zygote.name)
    program = f'case "$1" in programs/*) exec {shims}/program "$@";; *) exec {installed.bin}/python "$@";; esac'
    write_executable(shims / "runner", forked.replace("SCRIPT", "False"))
    write_executable(shims / "program", forked.replace("SCRIPT", "True"))
    write_executable(shims / "python", f"#!/bin/sh\n{program}\n")
    (shims / "as_pytest.py").write_text(PYTEST)
    write_executable(shims / "pytest", f'#!/bin/sh\nexec {shims}/program {shims}/as_pytest.py "$@"\n')
    yield variables | {"PATH": f"{shims}:{variables['PATH']}"}
    zygote.close()


@pytest.mark.timeout(TIMEOUT_S + 280)  # the first of a session builds the wheel
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_page_works_and_prints_what_it_says(
    page: Any, tmp_path: Path, environment: dict[str, str]
) -> None:
    text = page.read_text()
    directory, printed = tmp_path / "directory", tmp_path / "printed"
    directory.mkdir()
    printed.mkdir()
    for name, content in FILE.findall(text):
        (directory / name).parent.mkdir(exist_ok=True, parents=True)
        (directory / name).write_text(content)
    lines, shown = whole_script(text)
    output = run_page(lines, cwd=directory, env=environment | {"PRINTED": str(printed)})
    wrong = [
        f"$ {command.text}\n{said}"
        for number, command in enumerate(shown)
        if not command.printed(said := (printed / str(number)).read_text())
    ]
    assert wrong == [], "\n".join([f"{page.name} shows something else than:", *wrong, output])


def run_page(lines: str, *, cwd: Path, env: dict[str, str]) -> str:
    """Run the script; what it traced and printed."""
    process = subprocess.Popen(
        ["bash", "-c", lines],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"ran past {TIMEOUT_S} s:\n{process.communicate()[0]}")
    captured = "\n".join(
        file.read_text() for file in sorted(Path(env["PRINTED"]).iterdir(), key=lambda file: file.name)
    )
    assert process.returncode == 0, f"{output}\n{captured}"
    return output


@pytest.mark.parametrize("verb", verb_names())
def test_every_verb_stands_in_a_page_with_its_output(verb: Any) -> None:
    pages = [page.read_text() for page in PAGES if page.parent.name == "docs"]
    shown = [command for text in pages for command in whole_script(text)[1] if command.expected.strip(".\n")]
    assert [command for command in shown if command.text.split()[:2] == ["runner", verb]]


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: page.name)
def test_what_a_page_shows_of_python_and_yaml_can_be_read(page: Any) -> None:
    for language, source in SOURCES.findall(page.read_text()):
        compile(source, str(page), "exec") if language == "python" else yaml.safe_load(source)


def test_every_program_of_a_page_is_run() -> None:
    for page in MARKDOWN:
        text = page.read_text()
        for name in [name for name, _ in FILE.findall(text) if name.startswith("programs/")]:
            assert f"python {name}" in whole_script(text)[0], f"{page.name}: {name}"
