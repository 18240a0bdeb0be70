"""Record docs/pictures/terminal.svg: the commands of the README's first console block, run in a terminal.

Needs `runner` beside the Python that runs this. Usage: python scripts/record_terminal.py
"""

import fcntl
import io
import os
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

CHECKOUT = Path(__file__).parents[1]
PICTURE = CHECKOUT / "docs" / "pictures" / "terminal.svg"
HOME = "/home/you"
"""What the picture shows in place of the temporary directory."""
COLUMNS, ROWS = 110, 50
MARK = "\x1e"
"""Printed before the output of each command."""
ESCAPES = re.compile(r"\x1b\[(?![\d;]*m)[\d;?]*[A-Za-z]")
"""What moves the cursor or hides it; colors stay."""
REMOTE_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def commands() -> list[str]:
    """The commands of the README's first console block."""
    block = re.search(r"^```console\n(.*?)^```", (CHECKOUT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    return [line[2:] for line in block[1].splitlines() if line.startswith("$ ")]


def run(lines: list[str], directory: str) -> list[str]:
    """What a terminal shows of each command."""
    mark = "mark() { local code=$?; printf '\\036'; return $code; }"  # a command may ask for the code of the one before
    script = "\n".join([mark, *(f"mark\n{line}" for line in lines)])
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    variables = {"PATH": f"{Path(sys.executable).parent}:{os.defpath}", "HOME": directory, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        ["bash", "--norc", "-c", script],
        cwd=directory,
        env=variables | {"LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    read = bytearray()
    try:
        while block := os.read(ours, 65536):
            read += block
    except OSError:
        pass  # Linux: EIO once the last process has closed the terminal
    process.wait()
    return read.decode().split(MARK)[1:]


def draw(lines: list[str], shown: list[str]) -> str:
    """The picture, as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for line, output in zip(lines, shown, strict=True):
        console.print(Text.assemble(("$ ", "bold green"), (line, "bold")))
        if text := ESCAPES.sub("", output).replace("\r\n", "\n").rstrip("\n"):
            console.print(Text.from_ansi(text), highlight=False)
    svg = console.export_svg(title="runner", theme=MONOKAI, unique_id="terminal")
    return REMOTE_FONTS.sub("", svg)


def main() -> None:
    """Run, draw and write."""
    lines = commands()
    with tempfile.TemporaryDirectory() as directory:
        shown = [
            output.replace(os.path.realpath(directory), HOME) for output in run(lines, os.path.realpath(directory))
        ]
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(draw(lines, shown))
    print(PICTURE.relative_to(CHECKOUT))


if __name__ == "__main__":
    main()
