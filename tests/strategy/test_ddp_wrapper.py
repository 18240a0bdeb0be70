"""DDP does not import torch's compiler, and is torch's own wherever something else has."""

import subprocess
import sys
from pathlib import Path

import pytest

ALONE = """
import sys
import torch
import torch.distributed as dist
from runner.strategy.ddp.wrapper import DataParallel, _default_mode

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
model = DataParallel(torch.nn.Linear(3, 1))
model(torch.ones(2, 3)).sum().backward()
assert "torch._dynamo" not in sys.modules and "_dynamo" not in vars(torch)

with _default_mode():
    assert torch._dynamo.utils.get_optimize_ddp_mode() == "ddp_optimizer"
    assert "torch._dynamo" not in sys.modules
    config = torch._dynamo.config  # whatever else it is asked for is the real module's
assert config.optimize_ddp is True
assert torch._dynamo is sys.modules["torch._dynamo"]
assert torch._dynamo.utils.get_optimize_ddp_mode() == "ddp_optimizer"

seen = []
model.module.register_forward_hook(lambda *_: seen.append(DataParallel._active_ddp_module))
model(torch.ones(2, 3)).sum().backward()
assert seen == [model]  # which the compiler looks at
dist.destroy_process_group()
print("as expected")
"""


def test_the_compiler_is_asked_only_where_it_has_been_imported() -> None:
    program = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=120, check=False)
    assert program.stdout.strip() == "as expected", program.stderr


@pytest.mark.parametrize(
    ("words", "imports"),
    [(["strategy=ddp"], False), (["strategy=ddp", "compile.what=blocks", "blocks.classes=[Linear]"], True)],
)
def test_ranks_import_the_compiler_only_to_compile(project: Path, words: list[str], imports: bool) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "runner", "train", "points", "run.steps=2", *words]
    command += ["hardware=cpu", "hardware.processes=2", "compile.backend=eager"]
    program = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=170, check=False)
    assert program.returncode == 0, program.stderr[-3000:]
    assert "runner.strategy.ddp.wrapper\n" in program.stderr  # the ranks' imports are among these
    assert ("torch._dynamo\n" in program.stderr) is imports
