"""What may listen to a run: one callback a file."""
