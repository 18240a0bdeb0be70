"""Several axes of parallelism in one mesh: replicas, shards, pipeline stages, sequences, weight matrices, experts."""

from runner.strategy.parallel.parallel import Parallel

__all__ = ["Parallel"]
