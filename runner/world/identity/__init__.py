"""Finds the rank of this process in the environment variables of its launcher, with one file per launcher."""

from runner.world.identity.find import VARIABLES, find_identity
from runner.world.identity.identity import RankIdentity

__all__ = ["VARIABLES", "RankIdentity", "find_identity"]
