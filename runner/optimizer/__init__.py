"""Which optimizer updates the weights, and which weights decay."""
