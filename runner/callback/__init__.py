"""What may listen to a run: one callback per file."""
