"""Committed checkpoints on disk: their format, the commit protocol, which there are, and reading them. Laws 6 and 7."""
