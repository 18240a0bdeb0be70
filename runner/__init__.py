"""A declarative training runner for PyTorch. What hooks import stands here."""

from runner.protocols import Data, Loss

__version__ = "0.1.0"
__all__ = ["Data", "Loss", "__version__"]
