"""Ranks on several machines, started by the same command on each."""

from runner.launch.nodes.nodes import Nodes

__all__ = ["Nodes"]
