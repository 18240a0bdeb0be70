"""DeepSpeed itself: found, imported for the right device, given ranks to speak with, and kept from the terminal.

Importing it takes one to three seconds, so that only a worker whose strategy needs it does.
"""

import contextlib
import importlib.util
import logging
import os
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from runner.errors import RankError
from runner.log import logger
from runner.protocols import World
from runner.world.environment import environment

INSTALL = "pip install 'hydra-runner[deepspeed]'  (or: DS_BUILD_OPS=0 pip install deepspeed)"
_OWN = logging.getLogger("DeepSpeed")


def is_installed() -> bool:
    """Whether DeepSpeed can be imported; it is not."""
    return importlib.util.find_spec("deepspeed") is not None


def load(world: World) -> ModuleType:
    """Import DeepSpeed for the device of this rank.

    DeepSpeed looks for an accelerator while it is imported, and takes a GPU that it finds, unless DS_ACCELERATOR tells
    it otherwise: call this inside `variables`. What DeepSpeed prints goes to the log of the rank.

    Raises:
        RankError: this process had imported DeepSpeed for another device.
    """
    kind = world.device.type
    with quiet():
        import deepspeed
        from deepspeed.accelerator import get_accelerator, set_accelerator

        if kind == "cpu":
            set_accelerator(_host())
        found: str = get_accelerator().device_name()
    if found != kind:
        raise RankError(
            f"this process imported DeepSpeed for {found}, but the run's device is {kind}. "
            "Start the run in a process of its own (launch.fork=false)."
        )
    _listen()
    # It would compile an operator for inference, which no training uses: 40 s the first time, and a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It calls them by names that torch has changed since, several times a step.
    warnings.filterwarnings("ignore", message="`torch.distributed.(all_gather|reduce_scatter)_[a-z_]*` is deprecated")
    library: ModuleType = deepspeed
    return library


@contextlib.contextmanager
def variables(world: World) -> Iterator[None]:
    """What DeepSpeed reads from the environment while it is imported and an engine is built; afterwards as before.

    Operators are compiled when they are first used, by ninja, which a virtual environment that is not active hides.
    """
    path = os.pathsep.join((os.environ.get("PATH", ""), sysconfig.get_path("scripts")))
    with environment({"DS_ACCELERATOR": world.device.type, "PATH": path}):
        yield


def _host() -> Any:
    """The host, as DeepSpeed is told of it: torch computes in float16 on any, not only where oneDNN is fast at it."""
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    class Host(CPU_Accelerator):  # type: ignore[misc]
        def is_fp16_supported(self) -> bool:
            return True

    return Host()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What is printed or warned of in the block goes to the log of the rank, a line an event.

    For DeepSpeed's own calls only: no hook of the user, nor anything that logs, belongs inside.
    """
    # A file, since DeepSpeed asks for its descriptor when it tries a compiler, and takes its absence for a failure.
    with tempfile.TemporaryFile("w+") as said, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                yield
        finally:
            said.seek(0)
            for line in [*said, *(str(warning.message) for warning in warned)]:
                if line.strip():
                    _to_file(logging.INFO, " ".join(line.split()))


def open_group(world: World) -> bool:
    """Set the variable, make the process group that DeepSpeed wants even of a single rank, and tell it of the group.

    Returns:
        Whether there was no group; then `leave` is to undo all of it.
    """
    os.environ["LOCAL_RANK"] = str(world.local_rank)
    alone = not dist.is_initialized()
    if alone:
        backend = "gloo" if world.device.type == "cpu" else None
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    with quiet():
        from deepspeed import comm

        comm.init_distributed(verbose=False)
    return alone


def leave(engine: Any, *, alone: bool) -> None:
    """Let go of an engine, and of what `open_group` made for it."""
    with quiet():
        engine.destroy()
        if alone and dist.is_initialized():
            from deepspeed import comm

            comm.destroy_process_group()
            comm.comm.cdb = None
            os.environ.pop("LOCAL_RANK", None)


def _listen() -> None:
    """DeepSpeed has a logger of its own that prints: let it speak to the file of the rank, as everyone does."""
    for handler in tuple(_OWN.handlers):
        _OWN.removeHandler(handler)
    for handler in _files():
        _OWN.addHandler(handler)
    _OWN.setLevel(logging.WARNING)


def _files() -> list[logging.Handler]:
    return [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]


def _to_file(level: int, line: str) -> None:
    record = logger.makeRecord("runner.deepspeed", level, __file__, 0, line, (), None)
    for handler in _files():
        handler.handle(record)
