"""Imports DeepSpeed for the right device, sets up its process group and keeps its output off the terminal.

The import takes one to three seconds, so that only workers whose strategy needs DeepSpeed pay for it.
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

from runner.errors import RankError
from runner.log import logger
from runner.protocols import World
from runner.world.environment import environment

INSTALL = "pip install 'hydra-runner[deepspeed]'  (or: DS_BUILD_OPS=0 pip install deepspeed)"
_DEEPSPEED_LOGGER = logging.getLogger("DeepSpeed")


def is_installed() -> bool:
    """Whether DeepSpeed can be imported, without importing it."""
    return importlib.util.find_spec("deepspeed") is not None


def load(world: World) -> ModuleType:
    """Import DeepSpeed for the device of this rank.

    DeepSpeed looks for an accelerator when it is imported and uses any GPU that it finds, unless DS_ACCELERATOR says
    otherwise: call this inside `variables`. Its output goes to the log of the rank.

    Raises:
        RankError: this process has already imported DeepSpeed for another device.
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
    _redirect_logger()
    # Otherwise it compiles an operator that only inference uses: 40 s the first time, and it needs a compiler. Nothing
    # else is looked up there, and to read the attribute would probe all operators, which runs the compiler as well.
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    # DeepSpeed calls them by names that torch has deprecated, several times a step.
    warnings.filterwarnings("ignore", message="`torch.distributed.(all_gather|reduce_scatter)_[a-z_]*` is deprecated")
    library: ModuleType = deepspeed
    return library


@contextlib.contextmanager
def variables(world: World) -> Iterator[None]:
    """What DeepSpeed reads from the environment while it is imported and an engine is built; afterwards as before.

    Operators are compiled when they are first used, by ninja, which a virtual environment that is not active hides.
    """
    path = os.pathsep.join((os.environ.get("PATH", ""), sysconfig.get_path("scripts")))
    nvml = "PYTORCH_NVML_BASED_CUDA_CHECK"  # set by DeepSpeed when it is imported
    with environment({"DS_ACCELERATOR": world.device.type, "PATH": path, nvml: os.environ.get(nvml)}):
        yield


def _host() -> Any:
    """The CPU accelerator with float16 enabled: torch supports it on any CPU, not only where oneDNN is fast at it."""
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    class Host(CPU_Accelerator):  # type: ignore[misc]
        def is_fp16_supported(self) -> bool:
            return True

    return Host()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Redirect output and warnings of the block to the log of the rank, one record a line.

    For DeepSpeed's own calls only: neither user hooks nor code that logs may run inside.
    """
    # A real file: DeepSpeed asks for its descriptor when it probes for a compiler, and fails the probe without one.
    with tempfile.TemporaryFile("w+") as output, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                yield
        finally:
            output.seek(0)
            for line in [*output, *(str(warning.message) for warning in warned)]:
                if line.strip():
                    _to_file(logging.INFO, " ".join(line.split()))


def open_group(world: World) -> bool:
    """Set LOCAL_RANK and initialise DeepSpeed's communication, which needs a process group even for a single rank.

    Returns:
        Whether the process group was created here; `release` then destroys it and unsets LOCAL_RANK.
    """
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    os.environ["LOCAL_RANK"] = str(world.local_rank)
    created_group = not dist.is_initialized()
    if created_group:
        backend = "gloo" if world.device.type == "cpu" else None
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    with quiet():
        from deepspeed import comm

        comm.init_distributed(verbose=False)
    return created_group


def release(engine: Any, *, created_group: bool) -> None:
    """Destroy an engine, and the process group if `open_group` created it."""
    import torch.distributed as dist

    with quiet():
        engine.destroy()
        if created_group and dist.is_initialized():
            from deepspeed import comm

            comm.destroy_process_group()
            comm.comm.cdb = None
            os.environ.pop("LOCAL_RANK", None)


def _redirect_logger() -> None:
    """Send DeepSpeed's logger, which prints to the terminal by default, to the log file of the rank."""
    for handler in tuple(_DEEPSPEED_LOGGER.handlers):
        _DEEPSPEED_LOGGER.removeHandler(handler)
    for handler in _files():
        _DEEPSPEED_LOGGER.addHandler(handler)
    _DEEPSPEED_LOGGER.setLevel(logging.WARNING)


def _files() -> list[logging.Handler]:
    return [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]


def _to_file(level: int, line: str) -> None:
    record = logger.makeRecord("runner.deepspeed", level, __file__, 0, line, (), None)
    for handler in _files():
        handler.handle(record)
