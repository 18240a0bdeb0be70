"""Checkpoints to read: those that the tests of saving write."""

from tests.checkpoint.conftest import blank, checkpointer, checkpoints, save, world

__all__ = ["blank", "checkpointer", "checkpoints", "save", "world"]
