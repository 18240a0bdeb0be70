"""The group `optimizer`: the algorithm that updates the weights, and its parameter groups. One option per file."""
