"""The devices of one machine: one kind a file."""
