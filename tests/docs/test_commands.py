"""Every command that a page shows is run, in its order, in a directory with the files that the page shows."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).parent.parent.parent
MARKDOWN = sorted([CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")])
FILE = re.compile(r"^`((?:user_hooks|recipes|conf|programs)/[\w/.]+)`:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
TIMEOUT_S = 300
PAGES = [page for page in MARKDOWN if COMMANDS.search(page.read_text())]


@pytest.mark.timeout(TIMEOUT_S + 20)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_page_works(page: Any, tmp_path: Path) -> None:
    text = page.read_text()
    for name, content in FILE.findall(text):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(content)
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name, arguments in {"runner": "-m runner", "python": "", "pytest": "-m pytest"}.items():
        shim = bin_dir / name
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        shim.chmod(0o755)
    environment = os.environ | {"PATH": f"{bin_dir}:{os.environ['PATH']}", "PYTHONPATH": str(CHECKOUT)}
    script = "set -euo pipefail\n" + "\n".join(COMMANDS.findall(text))
    process = subprocess.Popen(
        ["bash", "-xc", script],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"{page.name} ran past {TIMEOUT_S} s:\n{process.communicate()[0]}")
    assert process.returncode == 0, output
