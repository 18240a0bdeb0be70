"""What docs/explain.md shows of `runner explain` is what it prints in a checkout."""

import re
from pathlib import Path

import pytest

from runner.cli.main import main

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs" / "explain.md").read_text()
SHOWN = re.findall(r"^(?:    .*\n)+", PAGE, re.MULTILINE)


@pytest.mark.parametrize(
    ("block", "argv"),
    [
        (0, ["optimizer.lr", "optimizer.lr=0.01"]),
        (1, ["strategy", "strategy=fsdp"]),
    ],
)
def test_what_the_page_shows_is_printed(
    block: int, argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(CHECKOUT)
    assert main(["explain", "digits", *argv]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line[4:] for line in SHOWN[block].splitlines() if line[4:] not in printed] == []
