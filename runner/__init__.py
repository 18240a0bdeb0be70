"""A declarative training runner for PyTorch. What hooks import stands here, and what Python programs call."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from runner.protocols import Data, Loss

if TYPE_CHECKING:
    from runner.api import RunRecord, RunSpec, compose, evaluate, load_run, predict, resume, train
    from runner.world.collectives import Collectives

__version__ = "0.1.0"
__all__ = [
    "Collectives",
    "Data",
    "Loss",
    "RunRecord",
    "RunSpec",
    "__version__",
    "compose",
    "evaluate",
    "load_run",
    "predict",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    """What needs torch, or only programs need, is imported when asked for: hooks import this package in every rank."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("runner.world.collectives" if name == "Collectives" else "runner.api"), name)


def __dir__() -> list[str]:
    return __all__
