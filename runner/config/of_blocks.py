"""The sections of a recipe that say what is done to the blocks of a model before any strategy."""

from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Which modules are the repeated blocks of the model: what is recomputed, compiled or sharded as one unit."""

    classes: list[str] = field(default_factory=list)
    """Names of their classes; empty = those in the model's own `_no_split_modules`."""


class Recompute(Enum):
    """Which activations are not kept in forward and are computed again in backward."""

    NONE = "none"
    """None."""
    BLOCKS = "blocks"
    """All inside a block; only its inputs are kept."""
    SELECTIVE = "selective"
    """The cheap ones inside a block; outputs of matrix products, convolutions and attention are kept."""


@dataclass(frozen=True, kw_only=True)
class ActivationCheckpointing:
    """Trades time for memory: activations are computed again in backward instead of being kept."""

    what: Recompute = Recompute.NONE
    """Which activations are computed again."""
    every: int = 1
    """Checkpoint only every n-th block; 1 = all."""


class Compiled(Enum):
    """What torch.compile compiles as one graph."""

    NONE = "none"
    """Nothing."""
    BLOCKS = "blocks"
    """Each block; equal ones are compiled once."""
    MODEL = "model"
    """The whole model."""
    STEP = "step"
    """The whole step: forward, backward, clipping and the optimizer's update."""


@dataclass(frozen=True, kw_only=True)
class Compile:
    """How torch.compile compiles the model."""

    what: Compiled = Compiled.NONE
    """What is compiled as one graph."""
    backend: str = "inductor"
    """Compiler backend."""
    mode: str | None = None
    """Mode of inductor: default, reduce-overhead, max-autotune, max-autotune-no-cudagraphs. null = default."""
    dynamic: bool | None = None
    """Compile for dynamic shapes; null = once a second shape occurs."""

    def __post_init__(self) -> None:
        if self.mode is not None and self.backend != "inductor":
            raise ValueError(f"mode={self.mode} is a mode of inductor, but compile.backend={self.backend}. Use null.")
