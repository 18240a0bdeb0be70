"""Finds the blocks of a model, and applies activation checkpointing and torch.compile before any strategy."""
