"""Several models in one run: each team, those that are updated together, is a trainable of one strategy."""
