"""Every cause has a class and an exit code of its own, and what ends a rank is what the shell sees."""

import pickle
import re
from pathlib import Path

import pytest

from runner import errors
from runner.errors import (
    CAUSES,
    HookError,
    Interrupted,
    NotReproducedError,
    OutOfMemoryError,
    RunFailed,
    RunnerError,
)

CHECKOUT = Path(__file__).parent.parent
CODES = {kind.__name__: kind.exit_code for kind in (*CAUSES, NotReproducedError, Interrupted)}


def test_every_cause_has_an_exit_code_of_its_own() -> None:
    defined = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RunnerError)}
    assert defined == {*CAUSES, RunnerError, RunFailed, NotReproducedError, Interrupted}
    assert len(set(CODES.values()) | {0, 1}) == len(CODES) + 2


def test_the_drawn_tree_and_the_page_say_the_same_codes() -> None:
    drawn = re.findall(r"── (\w+) \((\d+)\)", errors.__doc__ or "")
    assert {name: int(code) for name, code in drawn} == CODES
    page = re.findall(r"^\| (\d+) \| `(\w+)` \|", (CHECKOUT / "docs" / "exit_codes.md").read_text(), re.MULTILINE)
    assert {name: int(code) for code, name in page} == CODES


@pytest.mark.parametrize("kind", CAUSES, ids=lambda kind: kind.__name__)
def test_every_cause_is_raised_somewhere(kind: type[RunnerError]) -> None:
    raised = re.compile(rf"\b(raise|return) {kind.__name__}\(|error={kind.__name__}\b")  # the launcher reports some
    assert any(raised.search(path.read_text()) for path in (CHECKOUT / "runner").rglob("*.py"))


def test_a_failed_run_has_the_exit_code_of_its_cause() -> None:
    assert RunFailed("rank 0 failed", cause="HookError").exit_code == HookError.exit_code
    assert RunFailed("rank 0 failed", cause="ZeroDivisionError").exit_code == 1
    assert RunFailed("rank 0 was killed").exit_code == 1
    assert pickle.loads(pickle.dumps(RunFailed("it broke", cause="OutOfMemoryError"))).exit_code == 7
    assert OutOfMemoryError.exit_code == 7
