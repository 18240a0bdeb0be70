"""Hydra, once: a recipe, config groups and overrides become one plain configuration."""
