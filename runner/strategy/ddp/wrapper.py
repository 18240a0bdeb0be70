"""DistributedDataParallel without importing torch's compiler, which it asks how it optimizes DDP in compiled models.

See docs/decisions/034-optimizers-without-dynamo.md.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch.nn.parallel import DistributedDataParallel

COMPILER = "torch._dynamo"
DEFAULT_MODE = "ddp_optimizer"
"""What get_optimize_ddp_mode returns unless somebody has imported the compiler and changed its configuration."""


@final
class DataParallel(DistributedDataParallel):
    """torch's wrapper; where nothing has imported the compiler, it does not either."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """As DistributedDataParallel. Collective."""
        with _default_mode():
            super().__init__(*args, **options)

    def _run_ddp_forward(self, *inputs: Any, **keywords: Any) -> Any:
        if COMPILER in sys.modules:
            return super()._run_ddp_forward(*inputs, **keywords)  # type: ignore[no-untyped-call]
        return self.module(*inputs, **keywords)  # what torch does around it is for the compiler


@contextmanager
def _default_mode() -> Iterator[None]:
    """Where the compiler has not been imported, let torch find its default mode without importing it."""
    if COMPILER in sys.modules:
        yield
        return
    own: Any = torch
    own._dynamo = stand_in = _StandIn(COMPILER)
    try:
        yield
    finally:
        if vars(torch).get("_dynamo") is stand_in:  # otherwise somebody has imported the real one
            del own._dynamo


@final
class _StandIn:
    """Stands for a module until anything but the mode is asked of it: then that module is imported."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def utils(self) -> "_StandIn":
        return _StandIn(f"{self._name}.utils")

    def get_optimize_ddp_mode(self) -> str:
        return DEFAULT_MODE

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)
