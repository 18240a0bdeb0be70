"""Distributed data parallel, by torch's DistributedDataParallel."""

from runner.strategy.ddp.ddp import DDP

__all__ = ["DDP"]
