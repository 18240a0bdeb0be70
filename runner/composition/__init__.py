"""Composes a recipe, config groups and overrides into one plain configuration with Hydra, once per launch."""
