"""The group `precision`: the dtypes of weights, computation and gradients. One option per file."""
