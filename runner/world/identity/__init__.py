"""Which rank this process is, from the environment variables of whatever started it: one file for each environment."""

from runner.world.identity.find import VARIABLES, find_identity
from runner.world.identity.identity import RankIdentity

__all__ = ["VARIABLES", "RankIdentity", "find_identity"]
