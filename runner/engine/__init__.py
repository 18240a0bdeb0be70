"""The training loop and everything around it. The engine uses options through their protocols only."""
