"""Fully sharded data parallel, by torch's fully_shard."""

from runner.strategy.fsdp.fsdp import FSDP

__all__ = ["FSDP"]
