"""Saving and restoring runs: a commit protocol, safetensors payloads under torch's planners, retention."""
