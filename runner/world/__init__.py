"""The ranks of a run: their identity, their communication and their random numbers."""
