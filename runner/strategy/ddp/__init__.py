"""Distributed data parallel: the model on every rank."""

from runner.strategy.ddp.ddp import DDP

__all__ = ["DDP"]
