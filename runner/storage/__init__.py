"""Committed checkpoints on disk: their format, the commit protocol, the history of a run, and reading. Laws 6 and 7."""
