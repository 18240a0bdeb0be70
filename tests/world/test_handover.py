"""Ranks of this machine find the launcher's secrets in its memory, and nobody finds them afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.config.secret import Secret
from runner.world.environment import environment
from runner.world.handover import VARIABLE, hand_over, receive

SECRETS = {"a.key": Secret(value="open sesame", source="the command line"), "b": Secret(value=7, source="x")}


def test_this_process_and_a_new_one_receive_them() -> None:
    with hand_over(SECRETS) as place, environment(place):
        assert receive(os.environ) == SECRETS
        code = "import os; from runner.world.handover import receive; print(receive(os.environ)['a.key'].value)"
        for _ in range(2):  # as often as ranks are started
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
            assert done.stdout == "open sesame\n"
    assert VARIABLE not in os.environ


@pytest.mark.skipif(sys.platform != "linux", reason="memory without a name")
def test_they_have_no_name_and_go_with_the_launcher(tmp_path: Path) -> None:
    with hand_over(SECRETS) as place:
        path = Path(str(place[VARIABLE]))
        assert str(path.readlink()) == "/memfd:runner-secrets (deleted)"
    assert not path.exists()


def test_without_secrets_there_is_no_place() -> None:
    with hand_over({}) as place:
        assert place == {VARIABLE: None}
    assert receive({}) == {}
