"""Metrics of evaluations besides the loss, one per file."""
