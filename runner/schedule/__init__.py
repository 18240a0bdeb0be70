"""How learning rates move over the optimizer steps of a run."""
