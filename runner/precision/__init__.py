"""In which types a model computes: one choice a file."""
