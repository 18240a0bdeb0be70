"""How model and optimizer live on the ranks: one choice a file."""
