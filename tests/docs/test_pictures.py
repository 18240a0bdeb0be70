"""The recorded terminal shows what the README says, and nothing of the machine that it was recorded on."""

import re
from pathlib import Path
from xml.etree import ElementTree

from scripts.record_terminal import draw
from tests.docs.console import commands
from tests.docs.test_commands import CHECKOUT, COMMANDS

PICTURE = CHECKOUT / "docs" / "pictures" / "terminal.svg"


def lines_of(picture: Path) -> list[str]:
    """The lines of text in a recorded terminal, from top to bottom."""
    lines: dict[float, str] = {}
    for element in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text"):
        at = float(element.get("y", "0"))
        lines[at] = lines.get(at, "") + (element.text or "").replace("\xa0", " ")
    return [line.rstrip() for _, line in sorted(lines.items())]


def test_the_terminal_is_that_of_the_readme() -> None:
    language, block = COMMANDS.findall((CHECKOUT / "README.md").read_text())[0]
    assert language == "console"
    shown = lines_of(PICTURE)
    assert [line for line in shown if line.startswith("$ ")] == [f"$ {command.text}" for command in commands(block)]
    assert shown[-1] == commands(block)[-1].expected


def test_the_terminal_names_no_path_of_a_machine_and_loads_nothing() -> None:
    text = "\n".join(lines_of(PICTURE))
    assert set(re.findall(r"(?<![\w.])/\w+", text)) == {"/home"}
    assert set(re.findall(r"/home/\w+", text)) == {"/home/you"}
    assert "url(http" not in PICTURE.read_text()
    assert "@import" not in PICTURE.read_text()


def test_an_output_that_draws_over_itself_is_shown_as_it_ends() -> None:
    """A bar that was redrawn, hidden cursor and colors included."""
    svg = draw(["train"], ["\x1b[?25lstep 1\r\x1b[2Kstep \x1b[31m2\x1b[0m\r\n\x1b[?25hdone\r\n"])
    picture = ElementTree.fromstring(svg)
    texts = [element.text or "" for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    shown = "".join(texts).replace("\xa0", " ")
    assert "step 2" in shown
    assert "done" in shown
    assert "step 1" not in shown
