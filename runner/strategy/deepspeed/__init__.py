"""DeepSpeed's ZeRO, by the library itself."""

from runner.strategy.deepspeed.deepspeed import DeepSpeed

__all__ = ["DeepSpeed"]
