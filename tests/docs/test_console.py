"""What a console block is held against: a wildcard stands for what it says, and for nothing more."""

import pytest

from tests.docs.console import Command, commands

BLOCK = """\
$ runner train digits \\
>     run.steps=2
step 1
...
outputs/...
$ echo $?
0
"""


def test_a_block_is_read_as_commands_with_their_output() -> None:
    assert commands(BLOCK) == [
        Command("runner train digits \\\n    run.steps=2", "step 1\n...\noutputs/..."),
        Command("echo $?", "0"),
    ]


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("loss ... | 3 items", "loss 0.25 | 3 items\n", True),
        ("loss ... | 3 items", "loss 0.25\n| 3 items\n", False),
        ("one\n...\nfour", "one\ntwo\nthree\nfour\n", True),
        ("one\n...\nfour", "one\nfour\n", True),
        ("one\n...", "zero\none\ntwo\n", False),
        ("one", "one\ntwo\n", False),
        ("1.5 s", "1x5 s\n", False),
        ("", "", True),
        ("", "a warning\n", False),
        ("trailing", "trailing   \n\n", True),
    ],
)
def test_dots_stand_for_text_of_a_line_or_for_lines(expected: str, output: str, same: bool) -> None:
    assert Command("true", expected).printed(output) is same
