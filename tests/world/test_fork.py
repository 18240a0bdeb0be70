"""When a process may be forked."""

import subprocess
import sys

SCRIPT = """
import sys, threading
from types import SimpleNamespace
from runner.world.fork import can_fork, can_fork_ranks

print(can_fork(), can_fork_ranks(SimpleNamespace(can_fork=True)), can_fork_ranks(SimpleNamespace(can_fork=False)))
assert "torch" not in sys.modules
done = threading.Event()
threading.Thread(target=done.wait).start()
print(can_fork(), can_fork_ranks(SimpleNamespace(can_fork=True)))
done.set()
sys.modules["torch"] = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True))
while threading.active_count() > 1: pass
print(can_fork())
"""


def test_a_process_with_one_thread_and_without_a_device_may_fork() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["True True False", "False False", "False"]
